"""Proof that files load: each is read back by the rules of its program and compared with the adapter it came from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.adapters.exports import consumers
from acestep.adapters.exports.formats import DIFFUSERS_FILE, FORMATS, ExportOptions, export_adapter
from acestep.adapters.exports.opened import OpenAdapter, known_modules
from acestep.adapters.exports.reading import NeedsWeights, Reading
from acestep.adapters.files import NoAdapter, find_adapter, load_adapter
from acestep.adapters.lycoris_format import KINDS, weights_file
from acestep.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE
from acestep.adapters.source import read_header
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import read_json
from acestep.model.loading import load_transformer
from acestep.model.names import module_to_original

if TYPE_CHECKING:
    from torch import Tensor

    from acestep.core.device import DeviceChoice
    from acestep.model.checkpoints import Checkpoint

LARGEST_RELATIVE_DIFFERENCE = {"bf16": 0.01, "fp32": 1e-5}
"""How far a file may be from its adapter: bf16 keeps eight binary digits of each factor."""

_FRAMES, _TOKENS = 64, 16
"""Size of the input that outputs are compared on; what it holds does not matter, only that all weights count."""


@dataclass(frozen=True)
class FileCheck:
    """What one program makes of one file. Differences are those of the weights, against the original adapter."""

    program: str
    file: str
    keys: int
    used: int
    unused: tuple[str, ...]
    faults: tuple[str, ...]
    modules: int
    smallest_scale: float
    largest_scale: float
    compared: int = 0
    left_out: tuple[str, ...] = ()
    largest_difference: float | None = None
    relative_difference: float | None = None
    allowed: float | None = None
    output_difference: float | None = None
    note: str = ""

    @property
    def good(self) -> bool:
        whole = not (self.unused or self.faults or self.left_out) and self.modules > 0
        near = self.relative_difference is None or self.allowed is None or self.relative_difference <= self.allowed
        return whole and near

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}

    @property
    def lines(self) -> list[str]:
        """The check in words."""
        scale = f"{self.smallest_scale:.4g}"
        if self.largest_scale - self.smallest_scale > 1e-6 * abs(self.largest_scale):
            scale += f" to {self.largest_scale:.4g}"
        lines = [
            f"{self.program}: {'good' if self.good else 'NOT GOOD'}. {self.used} of {self.keys} keys used, "
            f"{self.modules} modules, scale {scale}"
        ]
        if self.relative_difference is not None:
            lines[0] += (
                f"; against the adapter: largest difference {self.largest_difference:.2g}, "
                f"relative {self.relative_difference:.2g} over {self.compared} modules"
            )
        if self.output_difference is not None:
            lines[0] += f"; output differs by {self.output_difference:.2g} of the adapter's effect"
        lines += [f"  {self.note}"] if self.note else []
        lines += [f"  not used: {name}" for name in self.unused[:5]]
        lines += [f"  left out: {name}" for name in self.left_out[:5]]
        return lines + [f"  {fault}" for fault in self.faults[:5]]


def check_file(path: Path, original: OpenAdapter | None) -> FileCheck:
    """Read an exported file or folder as its program does; compare with the adapter it was made from, if given."""
    return _compare(path, *_read(path, original), original)


def check_adapter(
    adapter: OpenAdapter, options: ExportOptions, job: Job, outputs: OutputComparison | None = None
) -> tuple[list[FileCheck], dict[str, str]]:
    """Export an adapter in every format into a temporary folder and check each; also why some formats do not exist."""
    checks: list[FileCheck] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in FORMATS:
            place = Path(temporary) / (f"{name}.safetensors" if name == "comfyui" else name)
            try:
                report = export_adapter(adapter, name, place, options, job)
            except UserError as error:
                refused[name] = str(error)
                continue
            check = check_file(report.path, adapter)
            checks.append(outputs.added_to(check, report.path) if outputs else check)
    return checks, refused


@dataclass(frozen=True)
class Findings:
    """What came out of checking an adapter or a file: each file's check, and why some formats do not exist."""

    checks: tuple[FileCheck, ...]
    not_written: Mapping[str, str]
    hint: str = ""
    """What the user could name to have more compared."""

    @property
    def good(self) -> bool:
        return bool(self.checks) and all(check.good for check in self.checks)


def check_path(
    path: Path,
    original: Path | None = None,
    checkpoint: Checkpoint | None = None,
    choice: DeviceChoice | None = None,
    options: ExportOptions | None = None,
    job: Job | None = None,
) -> Findings:
    """Try an adapter in every format, or read an exported file back and compare it with the `original`, if given.

    With a model outputs are compared too, on the device of `choice`.
    """
    source = original or (path if _is_adapter(path) else None)
    opened = OpenAdapter(source, checkpoint) if source else None
    outputs = OutputComparison(checkpoint, opened, choice) if opened and checkpoint and choice else None
    refused: dict[str, str] = {}
    if opened and original is None:
        checks, refused = check_adapter(opened, options or ExportOptions(), job or Job(), outputs)
    else:
        check = check_file(path, opened)
        checks = [outputs.added_to(check, path) if outputs else check]
    hint = ""
    if opened is None:
        hint = "Only names and scales were checked. Name the adapter it was made from with --original."
    elif any(check.compared < check.modules for check in checks):
        hint = "Some differences depend on the model's weights and were not compared. Name it with --model."
    return Findings(tuple(checks), refused, hint)


class OutputComparison:
    """The model's output with an adapter attached, beside that with a file's differences added to the weights."""

    def __init__(self, checkpoint: Checkpoint, original: OpenAdapter, choice: DeviceChoice) -> None:
        import torch

        self._original = original
        self._transformer = load_transformer(checkpoint, choice.dtype, choice.device)
        generator = torch.Generator().manual_seed(0)
        width, condition = checkpoint.config.latent_width, checkpoint.config.condition_width
        sizes = {
            "hidden_states": (1, _FRAMES, width),
            "encoder_hidden_states": (1, _TOKENS, condition),
            "context_latents": (1, _FRAMES, 2 * width),
        }
        self._inputs = {
            name: torch.randn(size, generator=generator).to(choice.device, choice.dtype) for name, size in sizes.items()
        }
        self._inputs |= {name: torch.tensor([0.6]).to(choice.device) for name in ("timestep", "timestep_r")}
        self._plain = self._run()
        adapter = load_adapter(original.source.path, self._transformer)
        self._attached = self._run()
        adapter.detach_from_model()

    def added_to(self, check: FileCheck, path: Path) -> FileCheck:
        """The check with the difference of outputs: its largest value over the adapter's own largest effect."""
        effect = float((self._attached - self._plain).abs().max())
        try:
            difference = float((self._attached - self._with_file(path)).abs().max())
        except NeedsWeights:
            return check
        return replace(check, output_difference=difference / effect if effect else difference)

    def _with_file(self, path: Path) -> Tensor:
        """The output with the file's differences added; the weights are then as they were."""
        assert self._original.base is not None
        reading = _read(path, self._original)[0]
        changed = []
        try:
            for module in self._original.modules:
                delta = reading.deltas.get(module_to_original(module))
                if delta is not None:
                    weight = self._transformer.get_submodule(module).weight
                    sum_in_fp32 = self._original.base.weight(module) + delta()
                    weight.data.copy_(sum_in_fp32)  # type: ignore[union-attr, operator]  # a parameter
                    changed.append((module, weight))
            return self._run()
        finally:
            for module, weight in changed:
                weight.data.copy_(self._original.base.weight(module))  # type: ignore[union-attr, operator]

    def _run(self) -> Tensor:
        import torch

        with torch.no_grad():
            return self._transformer(**self._inputs, return_dict=False)[0].float().cpu()


def _read(path: Path, original: OpenAdapter | None) -> tuple[Reading, Mapping[str, Tensor], dict[str, str]]:
    """A file as the program it is meant for reads it, with its tensors and metadata."""
    from safetensors.torch import load_file

    weights = _weights_file(path)
    with suppress(NoAdapter):
        find_adapter(weights)  # refuses one whose configuration is wrong
    header = read_header(weights)
    tensors = load_file(weights)
    shapes = _shapes(tensors, original)
    beside = weights.with_name(CONFIG_FILE)
    weight_of = None
    if original is not None and original.base is not None:
        base, names = original.base, {module_to_original(module): module for module in original.base.shapes}
        weight_of = lambda module: base.weight(names[module])  # noqa: E731
    if weights.name == WEIGHTS_FILE and beside.is_file():
        config = read_json(beside, "the adapter's configuration")
        return consumers.official_peft(tensors, config, shapes, weight_of), tensors, header.metadata
    if "lokr_config" in header.metadata:
        return consumers.official_lokr(tensors, header.metadata, shapes), tensors, header.metadata
    if any(name.startswith("transformer.") for name in tensors):
        return consumers.diffusers(tensors, shapes), tensors, header.metadata
    return consumers.comfyui(tensors, shapes), tensors, header.metadata


def _weights_file(path: Path) -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    for name in (WEIGHTS_FILE, *(weights_file(kind) for kind in KINDS), DIFFUSERS_FILE):
        if (path / name).is_file():
            return path / name
    if (path / "adapter").is_dir():
        return _weights_file(path / "adapter")
    raise UserError(f"{path} holds no adapter or exported file.", fix="Name the file, or its folder.")


def _is_adapter(path: Path) -> bool:
    """Whether a path is an adapter (of which exports can be made) and not another program's form of one."""
    try:
        find_adapter(path)
    except NoAdapter:
        return False
    return True


def _shapes(tensors: Mapping[str, Tensor], original: OpenAdapter | None) -> dict[str, tuple[int, ...]]:
    """Sizes of the model's weights by original names: from the original adapter, or as the file's tensors tell."""
    if original is not None and original.base is not None:
        return {module_to_original(name): shape for name, shape in original.base.shapes.items()}
    if original is not None:
        return {module_to_original(name): shape for name, shape in original.shapes.items()}
    return consumers.shapes_in(tensors, [module_to_original(name) for name in known_modules(tensors)])


def _compare(
    path: Path,
    reading: Reading,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    original: OpenAdapter | None,
) -> FileCheck:
    largest = lost = whole = 0.0
    compared = 0
    left_out: list[str] = []
    for module in original.modules if original else ():
        name = module_to_original(module)
        if name not in reading.deltas:
            left_out.append(name)
            continue
        assert original is not None
        if original.spec.needs_base and original.base is None:
            continue
        try:
            found = reading.deltas[name]()
        except NeedsWeights:
            continue
        wanted = original.delta(module)
        error = found - wanted
        largest = max(largest, float(error.abs().max()))
        lost += float(error.square().sum())
        whole += float(wanted.square().sum())
        compared += 1
    stored = "bf16" if any(str(tensor.dtype) == "torch.bfloat16" for tensor in tensors.values()) else "fp32"
    is_refit = "refit_error" in metadata
    scales = list(reading.scales.values()) or [0.0]
    return FileCheck(
        program=reading.program,
        file=path.name,
        keys=len(tensors),
        used=len(reading.used & set(tensors)),
        unused=tuple(sorted(set(tensors) - reading.used)),
        # without an effect there is nothing to measure a difference by
        faults=(*reading.faults, *(["the adapter changes nothing, the file does"] if lost and not whole else ())),
        modules=len(reading.deltas),
        smallest_scale=min(scales),
        largest_scale=max(scales),
        compared=compared,
        left_out=tuple(left_out),
        largest_difference=largest if compared else None,
        relative_difference=(lost / whole) ** 0.5 if compared and whole else None,
        allowed=None if is_refit else LARGEST_RELATIVE_DIFFERENCE[stored],
        note=f"A re-fit: it leaves out {float(metadata['refit_error']):.1%} of the adapter's effect by design."
        if is_refit
        else "",
    )
