"""An adapter on disk and what it does to each module, without the model around it.

The adapter is attached to a skeleton: modules of the transformer's names and sizes whose weights take no memory. Where
the base weights matter (DoRA and the like), one module's weight at a time is read from the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acestep.adapters.attaching import attach_spec
from acestep.adapters.base import Adapter
from acestep.adapters.families import FAMILIES
from acestep.adapters.files import find_adapter, read_tensors
from acestep.adapters.lycoris_format import lycoris_name
from acestep.adapters.peft_format import module_of, peft_key
from acestep.adapters.source import AdapterSource
from acestep.adapters.targets import EVERY_LINEAR
from acestep.core.errors import UserError
from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import stored_part
from acestep.model.names import module_to_original
from acestep.model.streaming import read_tensors as read_stored

Shapes = dict[str, tuple[int, ...]]

_OUTSIDE_LAYERS = (
    "proj_in_conv",
    "condition_embedder",
    *(f"{name}.{part}" for name in ("time_embed", "time_embed_r") for part in ("linear_1", "linear_2", "time_proj")),
)
"""Linear and convolution modules of the transformer outside its layers. `proj_out_conv` is a transposed convolution,
which no adapter of these families wraps."""

_TRANSPOSED = "proj_out_conv"
_LAYER = re.compile(r"layers[._](\d+)[._]")
_PLACEHOLDER = (1, 1)


class BaseWeights:
    """The weights an adapter was trained on, read from a checkpoint one by one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._stored = stored_part(checkpoint, "transformer").tensors

    @property
    def shapes(self) -> Shapes:
        """Weight shapes of the modules an adapter can wrap, by their diffusers names, in the model's order."""
        found = {
            name.removesuffix(".weight"): tensor.shape
            for name, tensor in self._stored.items()
            if name.endswith(".weight") and len(tensor.shape) >= 2 and not name.startswith(_TRANSPOSED)
        }
        return {name: found[name] for name in sorted(found, key=_model_order)}

    def weight(self, module: str) -> Tensor:
        """Weight of a module (diffusers name) in fp32 on the CPU."""
        stored = {module: self._stored[f"{module}.weight"]}
        return read_stored(stored, torch.float32, "cpu", "transformer")[module]


class OpenAdapter:
    """An adapter from disk, whole and checked: every tensor has its module, every module its tensors."""

    def __init__(self, path: str | Path, checkpoint: Checkpoint | None = None) -> None:
        self.source: AdapterSource = find_adapter(path)
        self.base = BaseWeights(checkpoint) if checkpoint is not None else None
        tensors = {name: tensor.float() for name, tensor in read_tensors(self.source).items()}
        shapes = self.base.shapes if self.base else shapes_from_tensors(self.source)
        self._weights = {name: _no_memory(shape) for name, shape in shapes.items()}
        skeleton = _skeleton(shapes, self._weights)
        modules = FAMILIES[self.source.kind].modules(self.source, skeleton)
        if not modules:
            whose = f"for {checkpoint.name}" if checkpoint else "for an ACE-Step 1.5 transformer"
            raise UserError(f"{self.source.path} has nothing {whose}.", fix="It was made for another model.")
        with torch.random.fork_rng(devices=[]):
            self.adapter: Adapter = attach_spec(skeleton, self.source.kind, self.source.spec, modules)
        self.adapter.load_tensors(tensors, source=str(self.source.path))
        self.tensors = self.adapter.tensors()
        """All tensors by their names in the file, in fp32; the memory is the attached adapter's."""
        self.spec: Any = self.source.spec
        self.modules = self.adapter.module_names
        """Wrapped modules, diffusers names in model order."""
        self.shapes: Shapes = {name: shapes[name] for name in self.modules}

    def require_base(self, why: str) -> None:
        """Raise a UserError when the base weights are needed and no model was named."""
        if self.spec.needs_base and self.base is None:
            raise UserError(
                f"{why}: what this adapter adds depends on the weights it was trained on.",
                fix="Name its model with --model.",
            )

    def tensors_of(self, module: str) -> dict[str, Tensor]:
        """The adapter's tensors of one module (diffusers name), in fp32, by what stands behind the module's name."""
        stems = (peft_key(module_to_original(module), ""), f"{lycoris_name(module)}.")
        return {
            name.removeprefix(stem): tensor
            for stem in stems
            for name, tensor in self.tensors.items()
            if name.startswith(stem)
        }

    def delta(self, module: str, strength: float = 1.0) -> Tensor:
        """What the adapter at `strength` adds to a module's weight: fp32, in the weight's shape."""
        self.require_base("The difference cannot be computed")
        if strength == 0:
            return torch.zeros(self.shapes[module])
        if not self.spec.needs_base:
            return (strength * self.adapter.weight_delta(module)).reshape(self.shapes[module])
        with self._with_base(module):
            if strength == 1:
                return self.adapter.weight_delta(module).reshape(self.shapes[module])
            return self._probe(module, strength)

    def _probe(self, module: str, strength: float) -> Tensor:
        """The difference at a strength that does not just scale it: what the attached module makes of unit vectors."""
        if len(self.shapes[module]) != 2:
            raise UserError(f"{module} is a convolution; adapters of this kind are merged at strength 1 only.")
        layer = self.adapter.transformer.get_submodule(module)
        columns = torch.eye(self.shapes[module][1])
        self.adapter.train(False)
        try:
            self.adapter.set_strength(strength)
            with torch.no_grad():
                attached = layer(columns).T
        finally:
            self.adapter.set_strength(1.0)
        return attached - self._weights[module].data

    @contextmanager
    def _with_base(self, module: str) -> Iterator[None]:
        """The skeleton's module has its real weight for the length of a block."""
        assert self.base is not None
        parameter, empty = self._weights[module], self._weights[module].data
        parameter.data = self.base.weight(module)
        try:
            yield
        finally:
            parameter.data = empty


def shapes_from_tensors(source: AdapterSource) -> Shapes:
    """Weight shapes of a transformer as an adapter's own tensors tell them, by diffusers names.

    Modules the file does not touch stand there with a placeholder, so that names in the file are understood as they
    would be on the model. Raises a UserError where the file alone does not tell.
    """
    found = _tensors_by_module(source)
    shapes: Shapes = dict.fromkeys(known_modules(source.shapes), _PLACEHOLDER)
    for module in list(shapes):
        for stem in (module_to_original(module), lycoris_name(module)):
            if stem in found:
                shapes[module] = _weight_shape(found[stem], module, source)
    if source.kind == "lora" and (source.targets is None or any(_LAYER.search(target) for target in source.targets)):
        # One more layer, which this adapter leaves alone: short names must not stand for modules beyond the file's.
        shapes |= dict.fromkeys(known_modules(source.shapes, spare_layers=1), _PLACEHOLDER) | shapes
    return shapes


def known_modules(names: Iterable[str], spare_layers: int = 0) -> list[str]:
    """Every module an adapter can wrap (diffusers names), with as many layers as the tensors' names speak of."""
    layers = 1 + max((int(match[1]) for name in names for match in _LAYER.finditer(name)), default=-1)
    return [
        *_OUTSIDE_LAYERS,
        *(f"layers.{layer}.{name}" for layer in range(layers + spare_layers) for name in EVERY_LINEAR),
    ]


def _tensors_by_module(source: AdapterSource) -> dict[str, Shapes]:
    """Shapes by module as the file names it, then by the rest of the name."""
    found: dict[str, Shapes] = {}
    for name, shape in source.shapes.items():
        if name.startswith("lycoris_"):
            stem, _, rest = name.partition(".")
        else:
            stem = module_of(name)
            rest = name.rpartition(".lora_")[2]
        found.setdefault(stem, {})[rest] = shape
    return found


def _weight_shape(tensors: Shapes, module: str, source: AdapterSource) -> tuple[int, ...]:
    """Shape of the weight that a module's adapter tensors change."""
    if "A.weight" in tensors and "B.weight" in tensors:
        return (tensors["B.weight"][0], tensors["A.weight"][1])
    if source.kind == "oft":
        raise UserError(
            f"{source.weights} holds rotations, which fit any number of outputs.", fix="Name its model with --model."
        )
    try:
        if "hada_w1_a" in tensors:
            return (tensors["hada_w1_a"][0], tensors["hada_w1_b"][1])
        first = tensors["lokr_w1"] if "lokr_w1" in tensors else (tensors["lokr_w1_a"][0], tensors["lokr_w1_b"][1])
        second = tensors["lokr_w2"] if "lokr_w2" in tensors else (tensors["lokr_w2_a"][0], tensors["lokr_w2_b"][1])
        out, width, kernel = first[0] * second[0], first[1] * second[1], second[2:]
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{source.weights}: the tensors of {module_to_original(module)} do not tell its size.",
            fix="Name the model with --model; if that says the same, take the adapter's original files.",
        ) from error
    if "lokr_w2_a" in tensors and module == "proj_in_conv":
        raise UserError(
            f"{source.weights}: the size of proj_in is not in the file.", fix="Name the model with --model."
        )
    return (out, width, *kernel)


def _model_order(module: str) -> tuple[int, int, str]:
    """Modules outside the layers first, then layer by layer in the order of their kinds."""
    match = re.match(r"layers\.(\d+)\.(.+)", module)
    if not match:
        return (-1, 0, module)
    place = EVERY_LINEAR.index(match[2]) if match[2] in EVERY_LINEAR else len(EVERY_LINEAR)
    return (int(match[1]), place, module)


def _no_memory(shape: Iterable[int]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(()).expand(*shape), requires_grad=False)


def _skeleton(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module tree with a linear (or convolution) layer of each name, all of whose weights are the given ones."""
    root = nn.Module()
    for name, shape in shapes.items():
        with torch.device("meta"):
            layer: nn.Module = (
                nn.Linear(shape[1], shape[0], bias=False)
                if len(shape) == 2
                else nn.Conv1d(shape[1], shape[0], shape[2], stride=shape[2], bias=False)
            )
        layer.weight = weights[name]
        parent = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]  # type: ignore[assignment]  # made above
        parent.add_module(leaf, layer)
    return root.eval()
