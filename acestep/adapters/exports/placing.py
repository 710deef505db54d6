"""Files and folders for others to load: written whole, and never over something else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX, atomic_file, atomic_folder, content_hash, disk_errors

_EXPORTED = (".safetensors", ".json", ".md")
_NOT_EXPORTED = ("run.json", "training.json", "config.json")
"""Files of runs, their adapters and models."""


def place_file(path: Path, make: Callable[[Path], None], replace: bool = False) -> bool:
    """Let `make` write a new file. Returns False, and writes nothing, where the same file is there already.

    Another file of that name stays, with a UserError, unless it is to be replaced and might be an earlier export.
    """
    if replace:
        _refuse_foreign(path)
    if not path.exists() or (replace and path.is_file()):
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


def place_folder(path: Path, make: Callable[[Path], None], replace: bool = False) -> bool:
    """Let `make` fill a new folder. Returns False, and writes nothing, where the same files are there already.

    A folder with anything else in it stays, with a UserError, unless it is to be replaced and holds nothing but what
    exports hold; an empty one is filled.
    """
    if replace:
        _refuse_foreign(path)
    if not path.exists() or (path.is_dir() and (replace or not any(path.iterdir()))):
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


def _refuse_foreign(path: Path) -> None:
    """Only what an export could have written gives way to another: never a folder of songs, nor a run."""
    inside = list(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    foreign = sorted(item.name for item in inside if not item.is_file() or item.suffix not in _EXPORTED)
    foreign += [item.name for item in inside if item.name in _NOT_EXPORTED]
    if foreign:
        raise UserError(
            f"{path} holds {foreign[0]}, which no export wrote; it is not replaced.",
            fix="Choose another name.",
        )


def _refuse_other_kind(path: Path, fits: bool) -> None:
    if not fits:
        kind = "a folder, and a file" if path.is_dir() else "a file, and a folder"
        raise UserError(f"{path} is {kind} is to be written.", fix="Choose another --out.")


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): content_hash(path) for path in folder.rglob("*") if path.is_file()}
