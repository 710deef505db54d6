"""Files: checked paths from users, and writes that are never seen half done.

Every file this project writes goes through `atomic_file`, `atomic_folder`, `write_files` or `write_json`: the bytes
are written under a temporary name in the same folder, flushed to the disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError

TEMPORARY_PREFIX = ".writing-"
"""Files and folders with this prefix are unfinished writes; readers ignore them."""

_ASIDE_PREFIX = TEMPORARY_PREFIX + "old-"
_WAITS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6) if os.name == "nt" else ()
"""Pauses before a name is tried to be given again."""
_CHUNK_BYTES = 1 << 20
_FLUSHED_AT_ONCE = 8
_LONGEST_NAME_BYTES = 200  # file systems take 255; the rest is for suffixes and the temporary prefix
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)

# What file systems answer that flush files only, such as shared folders of virtual machines.
_CANNOT_FLUSH_FOLDERS = (errno.EINVAL, errno.ENOTSUP)

# How torch and safetensors word a full disk; neither raises an OSError.
_DISK_FULL_SIGNS = ("os error 28", "No space left", "unexpected pos", "PytorchStreamWriter failed")


def existing_file(path: str | Path, what: str) -> Path:
    """The resolved path of a file that must exist. `what` names it in the error ("the dataset file")."""
    return _existing(path, what, folder=False)


def existing_folder(path: str | Path, what: str) -> Path:
    """The resolved path of a folder that must exist. `what` names it in the error ("the audio folder")."""
    return _existing(path, what, folder=True)


def output_folder(path: str | Path, what: str) -> Path:
    """Create (if needed) and return a folder the program may write into, or raise a UserError."""
    expanded = _expanded(path, what)
    with disk_errors(expanded):
        if expanded.is_file():
            raise UserError(f"{_capital(what)} {expanded} is a file, not a folder.", fix="Choose another place.")
        expanded.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=expanded):
            pass
    return expanded.resolve()


def _existing(path: str | Path, what: str, folder: bool) -> Path:
    expanded = _expanded(path, what)
    try:
        if expanded.is_dir() if folder else expanded.is_file():
            return expanded.resolve()
        if not expanded.exists():
            kind = "does not exist"
        else:
            kind = "is a folder, not a file" if expanded.is_dir() else "is a file, not a folder"
    except OSError as error:  # name too long, no access
        raise UserError(
            f"{_capital(what)} {path} cannot be opened ({_reason(error)}).", fix="Check the path."
        ) from error
    raise UserError(f"{_capital(what)} {expanded} {kind}.", fix="Check the path.")


def _expanded(path: str | Path, what: str) -> Path:
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{_capital(what)} {path} names an unknown user.", fix="Check the path.") from error
    if "\0" in str(expanded):
        raise UserError(f"{_capital(what)} {path!r} is no path: it holds a NUL character.", fix="Check the path.")
    return expanded


def _capital(what: str) -> str:
    return f"{what[:1].upper()}{what[1:]}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def nearest_existing(path: Path) -> Path:
    """What there is of a path that may still have to be made: it lies on the same disk."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def inside(root: Path, relative: str | Path) -> Path:
    """`root / relative`, resolved; raises a UserError when that leads out of `root` (`..`, links, absolute)."""
    try:
        resolved = (root / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, NUL in the name
        raise UserError(f"{relative!s} in {root} cannot be followed ({_reason(error)}).", fix="Check it.") from error
    if not resolved.is_relative_to(root.resolve()):
        raise UserError(f"{relative} leads outside {root}.", fix="Only files inside that folder can be used.")
    return resolved


def safe_name(text: str, fallback: str = "unnamed") -> str:
    """`text` as a file name that every file system takes: at most 80 characters, no separators, no dots first."""
    name = re.sub(r"[^\w\-. ]+", "_", text).strip(" ._")
    name = re.sub(r"\s+", "_", name)[:80]
    name = name.encode("utf-8")[:_LONGEST_NAME_BYTES].decode("utf-8", errors="ignore").rstrip(" ._")
    if _WINDOWS_DEVICES.match(name):
        return f"_{name}"
    return name or fallback


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn refusals while writing `path` (by the system, or passed on by torch and safetensors) into sentences."""
    try:
        yield
    except OSError as error:
        refusal = _refusal(path, error)
        if refusal is None:
            raise
        raise refusal from error
    except _library_errors() as error:
        if any(sign in str(error) for sign in _DISK_FULL_SIGNS):
            raise _disk_full(path) from error
        raise


def _refusal(path: Path, error: OSError) -> UserError | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path} cannot be written.", fix="Choose a folder you may write to.")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return UserError(f"{path} cannot be written: something else has that name.", fix="Choose another place.")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
        return UserError(f"The name {path} is too long or not allowed on this disk.", fix="Choose another name.")
    if error.errno == errno.EFBIG:
        return UserError(f"{path} becomes too large for this disk.", fix="Choose a disk that takes large files.")
    return None


def _disk_full(path: Path) -> UserError:
    return UserError(f"The disk is full while writing {path}.", fix="Free some space and run the same command again.")


def _library_errors() -> tuple[type[Exception], ...]:
    # torch raises RuntimeError; safetensors an error of its own, which exists only once it is imported
    safetensors = sys.modules.get("safetensors")
    return (RuntimeError,) if safetensors is None else (RuntimeError, safetensors.SafetensorError)


def _flush_folder(folder: Path) -> None:
    # Windows cannot open a folder; there a rename is durable without this.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_FLUSH_FOLDERS:
                raise
        finally:
            os.close(descriptor)


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def give_name(source: Path, target: Path) -> None:
    """`source.replace(target)`, tried again for some seconds on Windows.

    There it is refused while anybody has a file open that is moved or replaced: a page that reads along, or a virus
    scanner, which opens each new file.
    """
    for pause in _WAITS_S:
        with contextlib.suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(pause)
    source.replace(target)


def _temporary(path: Path, prefix: str = TEMPORARY_PREFIX) -> Path:
    """A free name beside `path` with its suffix. Made here, not by tempfile, whose files are private (0600)."""
    return path.parent / f"{prefix}{secrets.token_hex(8)}{path.suffix}"


def _claimed(path: Path) -> Path:
    """A new, empty temporary file beside `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.touch(exist_ok=False)
    return temporary


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well its file takes the name `path`, otherwise it is removed."""
    path = Path(path)
    with disk_errors(path):
        temporary = _claimed(path)
        mode = temporary.stat().st_mode  # as the umask grants; some libraries replace the file by a private one
        try:
            yield temporary
            temporary.chmod(mode)
            _flush_file(temporary)
            give_name(temporary, path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write many small files, each of them atomically; none takes its name before all are on the disk.

    Flushed side by side they share the disk's waits, so hundreds take little longer than one. A rename that is
    refused raises UserError and leaves the files renamed before it; any earlier refusal changes nothing.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            with disk_errors(path):
                staged[path] = _claimed(path)
                staged[path].write_bytes(data)
        with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as flushing:
            waits = [(path, flushing.submit(_flush_file, temporary)) for path, temporary in staged.items()]
        for path, wait in waits:
            with disk_errors(path):
                wait.result()
        for path, temporary in staged.items():
            with disk_errors(path):
                give_name(temporary, path)
        for folder in {path.parent for path in staged}:
            _flush_folder(folder)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well it takes the name `path`, replacing an older folder.

    The older folder is moved aside first and removed last, so at every moment one whole folder exists. A crash
    between the two renames leaves the older one aside; `remove_leftovers` and the next write put it back.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(path)
        temporary = _temporary(path)
        temporary.mkdir()
        aside = _temporary(path, _ASIDE_PREFIX) / path.name
        try:
            yield temporary
            _flush_tree(temporary)
            if path.exists():
                aside.parent.mkdir()
                give_name(path, aside)
            give_name(temporary, path)
            _flush_folder(path.parent)
        except BaseException:
            if aside.exists() and not path.exists():
                give_name(aside, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside.parent, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    for item in folder.rglob("*"):
        if item.is_dir():
            _flush_folder(item)
        elif item.is_file():
            _flush_file(item)
    _flush_folder(folder)


def _put_back(path: Path) -> None:
    """Give `path` its older content back if a crash came between moving it aside and replacing it."""
    if path.exists():
        return
    for aside in path.parent.glob(f"{_ASIDE_PREFIX}*/{glob.escape(path.name)}"):
        give_name(aside, path)
        return


def remove_leftovers(folder: Path) -> None:
    """Remove what writes interrupted by a crash left in `folder` (only the folder itself, not below).

    A whole folder that was moved aside and not yet replaced gets its name back first.
    """
    for aside in folder.glob(f"{_ASIDE_PREFIX}*/*"):
        _put_back(folder / aside.name)
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with the same bytes on every system."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # Windows would end lines in its own way


def write_json(path: Path, value: Any) -> None:
    """Write JSON (UTF-8, indented, readable) atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file, or a UserError that says where the file is wrong."""
    path = existing_file(path, what)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}).", fix="Check its permissions.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text.", fix="Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}).",
            fix="Correct that line.",
        ) from error
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        raise UserError(f"{path} cannot be read as JSON ({error}).", fix="Write it again.") from error
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
