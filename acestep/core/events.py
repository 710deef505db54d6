"""The append-only event log of a job: one JSON object a line, so any window can show the same picture."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from acestep.core.paths import disk_errors


class EventLog:
    """Appends events to a file. Each line is one write, so readers see whole lines only."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._line_is_cut = False
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_broken_line(path)

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event. Numbers that JSON cannot hold (NaN, infinity) become null."""
        event = {"time": round(self._clock(), 3), "kind": kind, **fields}
        line = json.dumps(_finite(event), ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        if self._line_is_cut:
            line = b"\n" + line
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                written = os.write(descriptor, line)
            finally:
                os.close(descriptor)
            self._line_is_cut = written < len(line)
            if self._line_is_cut:  # the disk took only a part
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_events(path: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first; a last line cut off by a crash is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            if not line.endswith("\n"):
                return
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that a crash cut off and a later run ended; nothing in it can be trusted
            if isinstance(event, dict) and (kind is None or event.get("kind") == kind):
                yield event


def _end_broken_line(path: Path) -> None:
    """End a line that a crash cut off, so that the next event starts on a line of its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) != b"\n":
            handle.write(b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
