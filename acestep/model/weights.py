"""safetensors files: what is in them and where, read without torch and without their bytes; and writing them.

The format: eight bytes with the length of the header (little endian), the header as JSON, then the tensors' bytes.
Files are checked before anything is believed, so that a download that broke off is recognised by its size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.core.errors import UserError
from acestep.core.paths import disk_errors, read_json
from acestep.core.words import counted

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes of one element, by the format's names of element types."""

_PREFIX_BYTES = 8
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
_GET_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: element type, shape, and the place of its bytes (`begin` to `end`) in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The files that hold a part's weights: `stem`.safetensors, or the shards its index lists.

    Raises UserError when neither is there, or a listed shard is missing.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(
            f"{folder} has no weights: neither {single.name} nor {index.name}.",
            fix=_other_formats(folder) or "Download or copy them there.",
        )
    shards = read_json(index, "the index of the weights").get("weight_map")
    names = list(dict.fromkeys(map(str, shards.values()))) if isinstance(shards, dict) and shards else None
    # A shard is a file beside its index; anything else would lead out of the folder.
    if names is None or not all(_is_file_name(name) for name in names):
        raise UserError(f'{index}: "weight_map" must give a file name beside it for every tensor.', fix=_GET_AGAIN)
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {counted(len(names), 'files')} of weights: {', '.join(missing)}.",
            fix="Download or copy them there.",
        )
    return [folder / name for name in sorted(names)]


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors")


def _other_formats(folder: Path) -> str:
    """The remedy when weights are there in a format this program does not open."""
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt", "*.gguf") for path in folder.glob(pattern))
    others = [name for name in others if name != "silence_latent.pt"]
    return f"Convert {others[0]} to safetensors; other formats are not opened." if others else ""


def read_weights(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """Every tensor of a part by its name on disk, from one file or from shards."""
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder, stem):
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise UserError(
                    f'"{tensor.name}" is both in {tensors[tensor.name].file.name} and {file.name} of {folder}.',
                    fix=_GET_AGAIN,
                )
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, in the order of their bytes; a damaged file is a UserError."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(_PREFIX_BYTES), "little")
            fits = size >= _PREFIX_BYTES and 2 <= length <= min(_LARGEST_HEADER, size - _PREFIX_BYTES)
            text = handle.read(length) if fits else b""
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}).", fix="Check its permissions.") from error
    if not fits:
        what = "is empty" if size == 0 else "is no safetensors file, or was cut off in its first bytes"
        raise UserError(f"{file} {what}.", fix=_GET_AGAIN)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} has a damaged header and cannot be used.", fix=_GET_AGAIN) from error
    if not isinstance(header, dict):
        raise UserError(f"{file} has a damaged header and cannot be used.", fix=_GET_AGAIN)
    start = _PREFIX_BYTES + length
    tensors = [_stored(file, start, name, entry) for name, entry in header.items() if name != "__metadata__"]
    needed = max((tensor.end for tensor in tensors), default=start)
    if needed > size:
        raise UserError(
            f"{file} is cut off: it has {size:,} of at least {needed:,} bytes.",
            fix=_GET_AGAIN,
        )
    return sorted(tensors, key=lambda tensor: tensor.begin)


def _stored(file: Path, start: int, name: str, entry: Any) -> StoredTensor:
    damaged = UserError(f'{file} describes the tensor "{name}" wrongly and cannot be used.', fix=_GET_AGAIN)
    if not isinstance(entry, dict):
        raise damaged
    dtype = entry.get("dtype")
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UserError(f'{file}: "{name}" has the unknown element type {dtype}.', fix="Convert it to bf16.")
    if shape is None or offsets is None or len(offsets) != 2:
        raise damaged
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise damaged
    return StoredTensor(name, dtype, tuple(shape), file, start + offsets[0], start + offsets[1])


def _whole_numbers(value: Any) -> list[int] | None:
    fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return value if fits else None


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to write: its name there, its element type as safetensors calls it, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_safetensors(
    path: Path, entries: Iterable[Entry], data: Callable[[Entry], Tensor | bytes], metadata: Mapping[str, str]
) -> None:
    """Write a file with one tensor in memory at a time. The same content is the same bytes in every run.

    `data` gives a tensor in the entry's type and shape, or its bytes.
    """
    # wide types first, as the library does: every tensor lies at a multiple of its element's size
    entries = sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype])
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    place = 0
    for entry in entries:
        end = place + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with disk_errors(path), open(path, "wb") as handle:
        handle.write(len(text).to_bytes(_PREFIX_BYTES, "little"))
        handle.write(text)
        for entry in entries:
            raw = data(entry)
            raw = raw if isinstance(raw, bytes) else _bytes_of(raw)
            if len(raw) != entry.size_bytes:
                raise AssertionError(f"{entry.name} has {len(raw)} bytes, its header says {entry.size_bytes}")
            handle.write(raw)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in its own type."""
    import torch

    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
