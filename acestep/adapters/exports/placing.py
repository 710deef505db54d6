"""Writing what others will load: safetensors files tensor by tensor, and targets that are never overwritten."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX, atomic_file, atomic_folder, content_hash, disk_errors
from acestep.model.weights import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor


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

    `data` gives a tensor in the entry's type and shape, or its bytes. The format: the header's length in eight bytes,
    the header as JSON, the tensors' bytes, at places that count from the header's end.
    """
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    place = 0
    for entry in entries:
        end = place + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with disk_errors(path), open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little"))
        handle.write(text)
        for entry in entries:
            raw = data(entry)
            raw = raw if isinstance(raw, bytes) else tensor_bytes(raw)
            if len(raw) != entry.size_bytes:
                raise AssertionError(f"{entry.name} has {len(raw)} bytes, its header says {entry.size_bytes}")
            handle.write(raw)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, in its own type."""
    import torch

    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def place_file(path: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` write a new file. Returns False, and writes nothing, where the same file is there already.

    Another file of that name stays, with a UserError.
    """
    if not path.exists():
        with atomic_file(path) as temporary:
            make(temporary)
        return True
    _refuse_other_kind(path, path.is_file())
    with disk_errors(path), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        make(made)
        if content_hash(made) != content_hash(path):
            raise already_there(path)
    return False


def place_folder(path: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill a new folder. Returns False, and writes nothing, where the same files are there already.

    A folder with anything else in it stays, with a UserError; an empty one is filled.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        with atomic_folder(path) as folder:
            make(folder)
        return True
    _refuse_other_kind(path, path.is_dir())
    with disk_errors(path), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as temporary:
        made = Path(temporary)
        make(made)
        if _contents(made) != _contents(path):
            raise already_there(path)
    return False


def already_there(path: Path) -> UserError:
    return UserError(
        f"{path} exists and holds something else; nothing is overwritten.",
        fix="Choose another --out, or move what is there away.",
    )


def _refuse_other_kind(path: Path, fits: bool) -> None:
    if not fits:
        kind = "a folder, and a file" if path.is_dir() else "a file, and a folder"
        raise UserError(f"{path} is {kind} is to be written.", fix="Choose another --out.")


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): content_hash(path) for path in folder.rglob("*") if path.is_file()}
