"""What each program loads: one writer a format.

| format    | program                        | what is written                                              |
|-----------|--------------------------------|--------------------------------------------------------------|
| peft      | ACE-Step app, PEFT             | folder: adapter_config.json, adapter_model.safetensors, card |
| lycoris   | ACE-Step app, LyCORIS          | lokr_weights.safetensors with its configuration inside       |
| comfyui   | ComfyUI                        | one file with names and scales as ComfyUI understands them   |
| diffusers | AceStepPipeline of diffusers   | pytorch_lora_weights.safetensors, scale folded into lora_B   |
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from acestep import __version__
from acestep.adapters.exports.diffusers_lokr import lokr_entries
from acestep.adapters.exports.opened import OpenAdapter
from acestep.adapters.exports.placing import place_file, place_folder
from acestep.adapters.exports.refit import RefitError, refit
from acestep.adapters.families import FAMILIES
from acestep.adapters.files import STORED, SaveDtype, write_adapter_files
from acestep.adapters.peft_format import CONFIG_FILE
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import TEMPORARY_PREFIX
from acestep.model.names import module_to_original
from acestep.model.weights import Entry, write_safetensors
from acestep.settings.export import ExportFormat

FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_PREFIX = "diffusion_model.decoder."
_RANK_WITHOUT = 32
"""What counts as the rank of an adapter that has none, when it is re-fitted."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export. `refit_rank` 0 takes twice the adapter's own rank, and 64 for OFT, which has none."""

    dtype: SaveDtype = "bf16"
    dora: Literal["diff", "refit"] = "diff"
    refit_rank: int = 0
    model_name: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What was written. `new` is False when the same files were there already."""

    format: ExportFormat
    path: Path
    new: bool
    modules: int
    tensors: int
    size_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}


@dataclass
class _Content:
    """Tensors of a file to be, in fp32; those named in `exact` are stored so, the others in the wanted type."""

    tensors: dict[str, Callable[[], Tensor]]
    shapes: dict[str, tuple[int, ...]]
    exact: set[str]
    notes: list[str]
    metadata: dict[str, str]

    def add(self, name: str, tensor: Tensor, exact: bool = False) -> None:
        self.tensors[name] = lambda: tensor
        self.shapes[name] = tuple(tensor.shape)
        if exact:
            self.exact.add(name)

    def add_later(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        """A tensor that is made when it is written: full differences do not fit into memory together."""
        self.tensors[name] = make
        self.shapes[name] = shape


def export_adapter(
    adapter: OpenAdapter,
    to: ExportFormat,
    out: Path,
    options: ExportOptions = ExportOptions(),
    job: Job | None = None,
    finish: Callable[[Path], None] | None = None,
    replace: bool = False,
) -> ExportReport:
    """Write an adapter for another program.

    `finish` may add files to a folder before it appears (the card). Raises a UserError when the format cannot hold
    the adapter, or when something else is at `out` already; with `replace` an earlier export there gives way.
    """
    job = job or Job()
    out = out.expanduser()
    if to in ("peft", "lycoris"):
        return _own_format(adapter, to, out, options, finish, replace)
    build = _comfyui if to == "comfyui" else _diffusers
    content = build(adapter, options, job)
    as_file = out.suffix == ".safetensors"
    if to == "comfyui" and not as_file:
        if out.is_dir():
            raise UserError(f"{out} is a folder; ComfyUI wants one file.", fix="End --out in .safetensors.")
        out, as_file = out.with_name(f"{out.name}.safetensors"), True

    def write(path: Path) -> None:
        _write(content, path, options.dtype, job)

    def fill(folder: Path) -> None:
        write(folder / DIFFUSERS_FILE)
        if finish:
            finish(folder)

    new = place_file(out, write, replace) if as_file else place_folder(out, fill, replace)
    return _report(to, out, new, len(adapter.modules), len(content.shapes), content.notes)


def _report(to: ExportFormat, path: Path, new: bool, modules: int, tensors: int, notes: list[str]) -> ExportReport:
    files = [path] if path.is_file() else list(path.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return ExportReport(to, path, new, modules, tensors, size, tuple(notes))


def _write(content: _Content, path: Path, dtype: SaveDtype, job: Job) -> None:
    import torch

    types = {"F32": torch.float32, "BF16": torch.bfloat16}
    entries = [
        Entry(name, "F32" if name in content.exact else STORED[dtype], shape) for name, shape in content.shapes.items()
    ]
    with job.stage("writing", len(entries), "tensors") as stage:

        def data(entry: Entry) -> Tensor:
            stage.advance()
            return content.tensors[entry.name]().to(types[entry.dtype])

        write_safetensors(path, entries, data, content.metadata)


# the official app -------------------------------------------------------------------------------------------------


def _own_format(
    adapter: OpenAdapter,
    to: ExportFormat,
    out: Path,
    options: ExportOptions,
    finish: Callable[[Path], None] | None,
    replace: bool,
) -> ExportReport:
    family = FAMILIES[adapter.source.kind]
    if adapter.source.kind == "loha":
        raise UserError(
            "The ACE-Step app does not read LoHa.", fix="Merge it into the model with acestep merge, and load that."
        )
    native: ExportFormat = "peft" if family.config_file == CONFIG_FILE else "lycoris"
    if native != to:
        raise UserError(
            f"A {adapter.adapter.name} adapter has no {to} form that the ACE-Step app reads.",
            fix=f"Export it with --to {native}.",
        )

    def fill(folder: Path) -> None:
        write_adapter_files(adapter.adapter, folder, adapter.source.tag, options.dtype)
        if finish:
            finish(folder)

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as temporary:
            write_adapter_files(adapter.adapter, Path(temporary), adapter.source.tag, options.dtype)
            (Path(temporary) / family.weights_file).replace(path)

    as_file = to == "lycoris" and out.suffix == ".safetensors"
    new = place_file(out, write, replace) if as_file else place_folder(out, fill, replace)
    return _report(to, out, new, len(adapter.modules), len(adapter.adapter.tensors()), [])


# ComfyUI ----------------------------------------------------------------------------------------------------------


def _comfyui(adapter: OpenAdapter, options: ExportOptions, job: Job) -> _Content:
    content = _Content({}, {}, set(), [], _metadata(adapter, options))
    if adapter.spec.needs_base and options.dora == "refit":
        _add_refit(content, adapter, options, job, _comfyui_low_rank)
    elif adapter.spec.needs_base:
        adapter.require_base("ComfyUI needs the full difference of every module")
        for module in adapter.modules:
            _add_difference(content, adapter, module)
        content.metadata["content"] = "full weight differences"
        content.notes.append(
            f"ComfyUI computes {_kind(adapter)} differently from how it was trained, so the full difference of every "
            "weight is stored: exact, but as large as the weights themselves. --dora refit makes a small file."
        )
    elif adapter.source.kind == "lora":
        _add_lora(content, adapter, _comfyui_low_rank)
    else:
        add = _add_kronecker if adapter.source.kind == "lokr" else _add_hadamard
        for module in adapter.modules:
            add(content, adapter, module)
    return content


def _comfyui_low_rank(content: _Content, module: str, down: Tensor, up: Tensor, alpha: float) -> None:
    import torch

    stem = f"{COMFYUI_PREFIX}{module_to_original(module)}"
    content.add(f"{stem}.lora_down.weight", down)
    content.add(f"{stem}.lora_up.weight", up)
    content.add(f"{stem}.alpha", torch.tensor(float(alpha)), exact=True)


def _add_difference(content: _Content, adapter: OpenAdapter, module: str) -> None:
    name = f"{COMFYUI_PREFIX}{module_to_original(module)}.diff"
    content.add_later(name, adapter.shapes[module], lambda: adapter.delta(module))


def _add_kronecker(content: _Content, adapter: OpenAdapter, module: str) -> None:
    """LyCORIS names; ComfyUI scales with alpha / rank when a factor is split, and not at all when both are whole."""
    import torch

    own = adapter.tensors_of(module)
    if len(adapter.shapes[module]) != 2:  # ComfyUI multiplies out the factors of two-dimensional kernels only
        _add_difference(content, adapter, module)
        return
    scale = kronecker_scale(adapter.spec, own)
    stem = f"lycoris_{module_to_original(module).replace('.', '_')}"
    rank = next((own[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in own), None)
    if rank is None:
        own["lokr_w1"] = own["lokr_w1"] * scale
        own["alpha"] = torch.tensor(1.0)
    else:
        own["alpha"] = torch.tensor(scale * rank)
    for name, tensor in own.items():
        content.add(f"{stem}.{name}", tensor, exact=name == "alpha")


def _add_hadamard(content: _Content, adapter: OpenAdapter, module: str) -> None:
    """LyCORIS names; ComfyUI scales with alpha / dimension. The alpha LyCORIS stores has rsLoRA's rule in it."""
    if len(adapter.shapes[module]) != 2:
        _add_difference(content, adapter, module)
        return
    stem = f"lycoris_{module_to_original(module).replace('.', '_')}"
    for name, tensor in adapter.tensors_of(module).items():
        content.add(f"{stem}.{name}", tensor, exact=name == "alpha")


def kronecker_scale(spec: Any, own: dict[str, Tensor]) -> float:
    """What LyCORIS multiplies kron(w1, w2) with. The alpha it stores has everything in it: it is the dimension where
    both factors are whole, and longer by the dimension's root for rsLoRA."""
    return float(own["alpha"]) / float(spec.linear_dim)


# diffusers --------------------------------------------------------------------------------------------------------


def _diffusers(adapter: OpenAdapter, options: ExportOptions, job: Job) -> _Content:
    content = _Content({}, {}, set(), [], _metadata(adapter, options))
    if adapter.spec.needs_base and options.dora == "refit":
        _add_refit(content, adapter, options, job, _diffusers_low_rank)
    elif adapter.spec.needs_base:
        raise UserError(
            f"diffusers does not apply {_kind(adapter)}.",
            fix="Re-fit it to a plain LoRA with --dora refit, or merge it into the model with acestep merge.",
        )
    elif adapter.source.kind == "lora":
        _add_lora(content, adapter, _diffusers_low_rank)
    elif adapter.source.kind == "lokr":
        for name, tensor in lokr_entries(adapter, kronecker_scale).items():
            content.add(name, tensor)
        content.notes.append(
            "AceStepPipeline.load_lora_weights refuses LoKr; load this one into the transformer: "
            f'pipe.transformer.load_lora_adapter(folder, weight_name="{DIFFUSERS_FILE}").'
        )
    else:
        raise UserError(
            f"diffusers has no loader for {adapter.adapter.name}.", fix="Merge it into the model with acestep merge."
        )
    return content


def _diffusers_low_rank(content: _Content, module: str, down: Tensor, up: Tensor, alpha: float) -> None:
    """diffusers finds no alpha in a file and takes the rank for it, so the scale goes into lora_B."""
    content.add(f"transformer.{module}.lora_A.weight", down)
    content.add(f"transformer.{module}.lora_B.weight", up * (alpha / down.shape[0]))


# both -------------------------------------------------------------------------------------------------------------


_AddLowRank = Callable[[_Content, str, Tensor, Tensor, float], None]
"""Adds the factors of a module, down [rank, in] and up [out, rank], whose product counts alpha / rank."""


def _add_lora(content: _Content, adapter: OpenAdapter, add: _AddLowRank) -> None:
    """Both programs know alpha / rank and no other rule of scale, so rsLoRA's goes into alpha."""
    for module in adapter.modules:
        own = adapter.tensors_of(module)
        down, up = own["lora_A.weight"], own["lora_B.weight"]
        add(content, module, down, up, adapter.spec.scale_of(module_to_original(module)) * down.shape[0])


def _add_refit(content: _Content, adapter: OpenAdapter, options: ExportOptions, job: Job, add: _AddLowRank) -> None:
    """Replace each module's difference by its best low-rank approximation, and say how good it is."""
    adapter.require_base("A re-fit needs the difference of every module")
    error = RefitError()
    with job.stage("re-fitting", len(adapter.modules), "modules") as stage:
        for module in adapter.modules:
            job.check_stop()
            delta = adapter.delta(module)
            rank = options.refit_rank or 2 * (adapter.spec.rank or _RANK_WITHOUT)
            down, up = refit(delta.reshape(delta.shape[0], -1), rank)
            error.add(module_to_original(module), delta, up @ down)
            add(content, module, down, up, float(down.shape[0]))
            stage.advance()
    content.metadata |= {"content": "low-rank re-fit", "refit_error": f"{error.total:.4f}"}
    content.notes.append(
        f"The re-fit leaves out {error.total:.1%} of the adapter's effect (relative Frobenius norm of the difference), "
        f"at worst {error.worst:.1%} in {error.worst_module}. A higher --refit-rank leaves out less."
    )


def _metadata(adapter: OpenAdapter, options: ExportOptions) -> dict[str, str]:
    """What people find in a file's header; no program needs it."""
    spec = adapter.spec
    facts = {
        "format": "pt",
        "software": f"acestep-lora-trainer {__version__}",
        "adapter": _kind(adapter),
        "rank": str(spec.rank or ""),
        "trigger_word": adapter.source.tag.word,
        "tag_position": adapter.source.tag.position if adapter.source.tag.word else "",
        "model": options.model_name,
    }
    return {name: value for name, value in facts.items() if value}


def _kind(adapter: OpenAdapter) -> str:
    return "DoRA" if getattr(adapter.spec, "use_dora", False) else adapter.adapter.name
