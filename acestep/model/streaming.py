"""Filling modules with tensors from safetensors files, one tensor at a time, without ever holding a file in memory.

A module is made on torch's meta device, where it has shapes but no memory. Each tensor is then read with plain file
reads straight into memory of its final dtype (through a small buffer, where dtype or device differ). Memory-mapping
the file, as safetensors does, would count every page read as memory of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from acestep.core.device import memory_told
from acestep.core.errors import UserError
from acestep.model.weights import StoredTensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Element types weights may be stored in; all others belong to quantised models."""

_STAGING_BYTES = 16 << 20

_LISTED = 4
"""Names that fit in a sentence; the whole list goes into the error's detail."""

M = TypeVar("M", bound=nn.Module)
Placed = Callable[[str, Tensor], bool]


def on_meta(make: Callable[[], M]) -> M:
    """The module `make` builds, without memory and without drawing random weights."""
    with torch.device("meta"):
        return make()


@dataclass(frozen=True)
class StoredPart:
    """The tensors of one part of a model on disk, under the module's own names.

    `what` and `folder` name the part in errors; `name_on_disk` turns a name of the module into the one its file should
    have.
    """

    tensors: Mapping[str, StoredTensor]
    what: str
    folder: Path
    name_on_disk: Callable[[str], str] = str

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a UserError unless exactly the wanted names and shapes are there. Keys are the module's names."""
        missing = sorted(self.name_on_disk(name) for name in wanted if name not in self.tensors)
        unexpected = sorted(tensor.name for name, tensor in self.tensors.items() if name not in wanted)
        wrong = [
            f"{tensor.name} is {_shape(tensor.shape)} instead of {_shape(wanted[name])}"
            + (" (it looks transposed)" if len(tensor.shape) > 1 and tensor.shape[::-1] == wanted[name] else "")
            for name, tensor in self.tensors.items()
            if name in wanted and tensor.shape != wanted[name]
        ]
        faults = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong)]
        faults = [(kind, names) for kind, names in faults if names]
        if not faults:
            return
        summary = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in faults)
        raise UserError(
            f"{self.folder}: the weights of the {self.what} do not fit its configuration ({summary}).",
            fix="Get the folder again, or use weights and config.json of the same model.",
            detail="\n".join(f"{kind}: {name}" for kind, names in faults for name in names),
        )


def fill(
    module: M,
    stored: StoredPart,
    dtype: torch.dtype,
    device: torch.device | str,
    optional: Collection[str] = (),
    placed: Placed | None = None,
) -> M:
    """Give `module` the stored tensors; it is then frozen and in eval mode.

    `optional` are names of the module that may be missing; `placed` gets each tensor as soon as it is read and says
    whether it has put it into the module itself, in a form of its own. Raises UserError that lists missing and
    unexpected names and wrong shapes, before a byte of weights is read.
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    stored.check({name: shape for name, shape in shapes.items() if name in stored.tensors or name not in optional})
    tensors = read_tensors(stored.tensors, dtype, device, stored.what, placed)
    module.load_state_dict(tensors, strict=False, assign=True)
    unfilled = [name for name, value in [*module.named_parameters(), *module.named_buffers()] if value.is_meta]
    if set(unfilled) - set(optional):
        raise RuntimeError(f"{type(module).__name__} has values its checkpoint does not store: {', '.join(unfilled)}")
    return module.requires_grad_(False).eval()


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def read_tensors(
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device | str,
    what: str,
    placed: Placed | None = None,
) -> dict[str, Tensor]:
    """The stored tensors in `dtype` on `device`, under the keys of `stored`, read in the order they lie on disk.

    Those that `placed` takes are left out, so that never more than one of them is there whole.
    """
    tensors: dict[str, Tensor] = {}
    reader = _Reader(dtype, torch.device(device))
    files: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, tensor in sorted(stored.items(), key=lambda item: item[1].begin):
        files.setdefault(tensor.file, []).append((name, tensor))
    no_room = memory_told(
        f"The {what} does not fit into the memory of {reader.device}.",
        fix="Close other programs that use the device, choose bf16 precision, or a smaller model.",
    )
    try:
        with no_room:
            for file, entries in files.items():
                with open(file, "rb", buffering=0) as handle:
                    for name, tensor in entries:
                        value = reader.read(handle, tensor)
                        if placed is None or not placed(name, value):
                            tensors[name] = value
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}).", fix="Check the disk.") from error
    return tensors


class _Reader:
    """Reads tensors into one dtype and device.

    Where the file's dtype or the device differs, bytes go through one small staging buffer. Staging whole tensors
    would leave holes in the heap between the final ones, half as much memory again for fp32 files read as bf16.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._staging: Tensor | None = None

    def read(self, handle: BinaryIO, stored: StoredTensor) -> Tensor:
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.file}: {stored.name} is stored as {stored.dtype}, as in quantised models.",
                fix="Use the bf16 or fp32 model.",
            )
        source = DTYPES[stored.dtype]
        final = torch.empty(stored.shape, dtype=self.dtype, device=self.device)
        handle.seek(stored.begin)
        if source == self.dtype and self.device.type == "cpu":
            _read_into(handle, _bytes_of(final), stored)
            return final
        staging = self._buffer()
        flat = final.view(-1)
        step = staging.numel() // source.itemsize
        for begin in range(0, flat.numel(), step):
            target = flat[begin : begin + step]
            part = staging[: target.numel() * source.itemsize]
            _read_into(handle, _bytes_of(part), stored)
            target.copy_(part.view(source))
        return final

    def _buffer(self) -> Tensor:
        if self._staging is None:
            pinned = self.device.type == "cuda"  # copied to the card without another copy on the way
            self._staging = torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=pinned)
        return self._staging


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _read_into(handle: BinaryIO, buffer: memoryview, stored: StoredTensor) -> None:
    filled = 0
    while filled < len(buffer):  # one call reads at most 2 GiB, and may read less
        count = handle.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not count:
            raise UserError(f"{stored.file} ends in the middle of {stored.name}.", fix="Download or copy it again.")
        filled += count
