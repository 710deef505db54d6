"""The model kept in memory between plays: at most one, loaded when first needed, given up for heavier work."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acestep.core.device import DeviceChoice
    from acestep.generate import Parts
    from acestep.model.checkpoints import Checkpoint


@dataclass(frozen=True)
class MemoryChange:
    """What loading or unloading did to the memory, in bytes; `place` says whose memory was measured."""

    action: str
    before_bytes: int
    after_bytes: int
    place: str

    def __str__(self) -> str:
        before, after = self.before_bytes / 1e9, self.after_bytes / 1e9
        return f"{self.action}: {self.place} {before:.2f} GB before, {after:.2f} GB after."


class Loaded:
    """Keeps the parts of one model for generation. Safe to share between threads."""

    def __init__(self) -> None:
        self.change: MemoryChange | None = None
        """What the last loading or unloading did."""
        self._parts: Parts | None = None
        self._choice: DeviceChoice | None = None
        self._lock = threading.Lock()

    @property
    def parts(self) -> Parts | None:
        """What is in memory now."""
        return self._parts

    @property
    def choice(self) -> DeviceChoice | None:
        """Where it lies and in which precision."""
        return self._choice

    def get(self, checkpoint: Checkpoint, choice: DeviceChoice) -> Parts:
        """The parts of a model, loaded unless they are in memory. Another model makes room first.

        Whoever attaches an adapter to them detaches it again.
        """
        from acestep.core.device import memory_in_use
        from acestep.generate import load_parts

        with self._lock:
            kept = self._parts
            if kept is not None and kept.checkpoint == checkpoint and self._choice == choice:
                return kept
            del kept
            self._drop()
            before, place = memory_in_use()
            parts = load_parts(checkpoint, choice)
            self._parts, self._choice = parts, choice
            self.change = MemoryChange(f"Loaded {checkpoint.name}", before, memory_in_use()[0], place)
            return parts

    def unload(self) -> MemoryChange | None:
        """Give the memory back; None where nothing was loaded."""
        with self._lock:
            return self._drop()

    def _drop(self) -> MemoryChange | None:
        if self._parts is None:
            return None
        from acestep.core.device import free_memory, memory_in_use

        name = self._parts.checkpoint.name
        before, place = memory_in_use()
        self._parts = self._choice = None
        free_memory()
        self.change = MemoryChange(f"Unloaded {name}", before, memory_in_use()[0], place)
        return self.change
