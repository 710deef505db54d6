"""What audio files are, by content: their ids and lengths, remembered for files that did not change.

The memory is one small JSON file in the program's state folder. It only saves time: when it is damaged, full,
or cannot be written, files are read again.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acestep.core.errors import UserError
from acestep.core.jobs import state_folder
from acestep.core.paths import content_hash, write_text

ID_DIGITS = 16
FILE_NAME = "fingerprints.json"
MOST_ENTRIES = 20_000
_VERSION = 1  # raise this when the same file gives another id or length than before
_ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")
_LARGEST_FILE = 64 << 20
_LOCK_WAIT_S = 2.0


@dataclass(frozen=True)
class Fingerprint:
    """Id (16 hex digits of the SHA-256 of the bytes) and length of an audio file."""

    id: str
    duration_s: float


class Fingerprints:
    """Fingerprints of files by resolved path, size and time of change. Call `save` when done."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or state_folder() / FILE_NAME
        self._known = _read(self._file)
        self._new: dict[str, list[Any]] = {}

    def of(self, path: Path) -> Fingerprint:
        """The fingerprint of an audio file. Raises OSError when it cannot be read, UserError when it is not audio."""
        key, before = str(path), path.stat()
        stamp = [before.st_size, before.st_mtime_ns]
        entry = self._known.get(key)
        if entry is not None and (known := _fingerprint(entry, stamp)) is not None:
            return known
        from acestep.audio.decode import probe

        identity = content_hash(path)[:ID_DIGITS]
        found = Fingerprint(identity, round(probe(path).duration_s, 3))
        after = path.stat()
        if [after.st_size, after.st_mtime_ns] == stamp:  # nobody was writing it meanwhile
            self._known[key] = self._new[key] = [*stamp, found.id, found.duration_s]
        return found

    def save(self) -> None:
        """Write what is new, together with what other processes wrote meanwhile; the latest entries are kept."""
        if not self._new:
            return
        lock = FileLock(self._file.with_suffix(".lock"))
        # without the memory the next scan is slower, nothing more
        with contextlib.suppress(OSError, UserError, Timeout, UnicodeEncodeError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with lock.acquire(timeout=_LOCK_WAIT_S):
                entries = {**_read(self._file), **self._new}
                for key in list(entries)[: max(0, len(entries) - MOST_ENTRIES)]:
                    del entries[key]
                write_text(self._file, json.dumps({"version": _VERSION, "files": entries}, ensure_ascii=False))
            self._new.clear()


def _read(file: Path) -> dict[str, Any]:
    """The entries of the memory; none when it is missing or damaged."""
    try:
        if file.stat().st_size > _LARGEST_FILE:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if (
        not isinstance(content, dict)
        or content.get("version") != _VERSION
        or not isinstance(content.get("files"), dict)
    ):
        return {}
    return content["files"]


def _fingerprint(entry: Any, stamp: list[int]) -> Fingerprint | None:
    """The fingerprint in an entry whose size and time are `stamp`; None when they differ or it is damaged."""
    if not isinstance(entry, list) or len(entry) != 4 or entry[:2] != stamp:
        return None
    identity, duration_s = entry[2:]
    if not isinstance(identity, str) or not _ID.fullmatch(identity) or not isinstance(duration_s, float):
        return None
    return Fingerprint(identity, duration_s) if 0 < duration_s < 1e7 else None
