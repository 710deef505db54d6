"""Files: checked paths from users, and writes that are never seen half done.

Every file this project writes goes through `atomic_file`, `atomic_folder` or `write_json`: the bytes
are written under a temporary name in the same folder, flushed to the disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError

TEMPORARY_PREFIX = ".writing-"
"""Files and folders with this prefix are unfinished writes; readers ignore them."""

_CHUNK_BYTES = 1 << 20


def existing_file(path: str | Path, what: str) -> Path:
    """The resolved path of a file that must exist. `what` names it in the error ("the dataset file")."""
    resolved = Path(path).expanduser()
    if resolved.is_file():
        return resolved.resolve()
    kind = "is a folder, not a file" if resolved.is_dir() else "does not exist"
    raise UserError(f"{what[:1].upper()}{what[1:]} {resolved} {kind}.", fix="Check the path.")


def existing_folder(path: str | Path, what: str) -> Path:
    """The resolved path of a folder that must exist. `what` names it in the error ("the audio folder")."""
    resolved = Path(path).expanduser()
    if resolved.is_dir():
        return resolved.resolve()
    kind = "is a file, not a folder" if resolved.exists() else "does not exist"
    raise UserError(f"{what[:1].upper()}{what[1:]} {resolved} {kind}.", fix="Check the path.")


def output_folder(path: str | Path, what: str) -> Path:
    """Create (if needed) and return a folder the program may write into, or raise a UserError."""
    resolved = Path(path).expanduser()
    if resolved.exists() and not resolved.is_dir():
        raise UserError(
            f"{what[:1].upper()}{what[1:]} {resolved} is a file, not a folder.", fix="Choose another place."
        )
    with disk_errors(resolved):
        resolved.mkdir(parents=True, exist_ok=True)
        probe = tempfile.NamedTemporaryFile(prefix=TEMPORARY_PREFIX, dir=resolved)
        probe.close()
    return resolved.resolve()


def inside(root: Path, relative: str | Path) -> Path:
    """`root / relative`, resolved; raises a UserError when that leads out of `root` (`..`, links, absolute)."""
    resolved = (root / relative).resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise UserError(f"{relative} leads outside {root}.", fix="Only files inside that folder can be used.")
    return resolved


def safe_name(text: str, fallback: str = "unnamed") -> str:
    """`text` as a file name that every file system takes: at most 80 characters, no separators, no dots first."""
    name = re.sub(r"[^\w\-. ]+", "_", text).strip(" ._")
    name = re.sub(r"\s+", "_", name)[:80].rstrip(" ._")
    return name or fallback


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk is full while writing {path}.", fix="Free some space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path} cannot be written.", fix="Choose a folder you may write to.") from error
        raise


def _flush_folder(folder: Path) -> None:
    # Windows cannot open a folder; there a rename is durable without this.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well its file takes the name `path`, otherwise it is removed."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush_file(temporary)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it takes the name `path`, replacing an older folder.

    The older folder is moved aside first and removed last, so at every moment one whole folder exists.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
        old: Path | None = None
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_file(file)
            os.chmod(temporary, 0o755)  # mkdtemp makes private folders
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent)) / path.name
                os.replace(path, old)
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except BaseException:
            if old is not None and old.exists() and not path.exists():
                os.replace(old, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if old is not None:
                shutil.rmtree(old.parent, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes interrupted by a crash left in `folder` (only the folder itself, not below)."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        os.chmod(temporary, 0o644)  # mkstemp makes private files


def write_json(path: Path, value: Any) -> None:
    """Write JSON (UTF-8, indented, readable) atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file, or a UserError that says where the file is wrong."""
    path = existing_file(path, what)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.", fix="Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}).",
            fix="Correct that line.",
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be read.", fix="Write it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}.", fix="Write it as {…}.")
    return value


def content_hash(path: Path) -> str:
    """The first 32 hex digits of the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()[:32]


def value_hash(value: Any) -> str:
    """The first 32 hex digits of the SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
