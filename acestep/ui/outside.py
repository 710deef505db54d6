"""Noticing that another program has changed the files of the songs that are open: the command line, another app.

Nothing is read again by itself, so that no text is drawn over while somebody types; the page says it, with a button.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from acestep.ui.label_desk import LabelDesk

LOOK_AGAIN_S = 3.0
COST = 200
"""Looks are at least so many times as far apart as one takes: with many songs, or on a slow drive, they are rarer."""


class OutsideChanges:
    """Looks at the files now and then, for all open pages together. Safe to share between threads."""

    def __init__(self, desk: LabelDesk, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk
        self._clock = clock
        self._lock = threading.Lock()
        self._due = clock()
        self._changed_in = -1
        """The generation of the dataset that was found changed."""

    @property
    def found(self) -> bool:
        """Whether the last look has found a change."""
        return self._changed_in == self._desk.generation

    def look(self) -> bool:
        """Whether there is a change, looked for anew where that is due."""
        if not self.found and self._lock.acquire(blocking=False):
            try:
                begun = self._clock()
                if begun >= self._due:
                    self._look()
                    self._due = self._clock() + max(LOOK_AGAIN_S, COST * (self._clock() - begun))
            finally:
                self._lock.release()
        return self.found

    def _look(self) -> None:
        desk = self._desk
        with desk.lock:
            dataset, file, before = desk.dataset, desk.file, (desk.generation, desk.revision)
        changed = dataset is not None and dataset.files.changed(file)
        with desk.lock:  # what was written here meanwhile may not have been noted when it was looked at
            if changed and before == (desk.generation, desk.revision):
                self._changed_in = desk.generation
