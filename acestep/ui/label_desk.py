"""The one place through which all pages edit labels: one at a time, kept on disk at once, seen by every page.

Where two pages edit the same label, the later one counts; each page learns what another has changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError
from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import Draft, Edit, History, set_labels
from acestep.dataset.song import NOT_SAID, Song
from acestep.dataset.store import save_dataset

PAGES_KNOWN = 100
"""Of so many open pages it is known which song they show."""


class LabelDesk:
    """The dataset in hand and its edits. `revision` grows with every change, `generation` with every dataset."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.dataset: Dataset | None = None
        self.revision = 0
        self.generation = 0
        self.saved_at: float | None = None
        self.said = ""
        """What the last step back or forth did; every other edit ends it."""
        self._clock = clock
        self._history: History | None = None
        self._touched: dict[tuple[str, str], tuple[int, str]] = {}
        self._typing: tuple[str, str, str] | None = None
        self._looked_at: dict[str, str] = {}

    @property
    def file(self) -> Path | None:
        """The dataset file that edits are kept in; None: in song.json beside each song."""
        return self._history.file if self._history else None

    @property
    def history(self) -> History:
        """The edits so far. Raises UserError while no songs are open."""
        if self._history is None:
            raise UserError("No songs are open.", fix="Choose a folder of songs or drop some files first.")
        return self._history

    def take(self, dataset: Dataset | None, file: Path | None) -> None:
        """Take a dataset in hand; edits of the one before cannot be taken back any more."""
        with self.lock:
            self.dataset = dataset
            self._history = History(dataset, file) if dataset is not None else None
            self.generation += 1
            self.revision += 1
            self.saved_at = self._typing = None
            self.said = ""
            self._touched.clear()

    def carry_over(self, dataset: Dataset, since: int) -> None:
        """Give a dataset that was read anew what was edited after the revision `since`, while it was read."""
        with self.lock:
            read = {song.id: song for song in dataset.songs}
            for edited in self.dataset.songs if self.dataset else []:
                song = read.get(edited.id)
                for name in NOT_SAID:
                    if song is None or self._touched.get((song.id, name), (0, ""))[0] <= since:
                        continue
                    song.take(edited, name)

    def song(self, song_id: str) -> Song:
        """The song of an id. Raises UserError when the dataset has it no more."""
        songs = self.history.dataset.songs
        found = next((song for song in songs if song.id == song_id), None)
        if found is None:
            raise UserError("That song is no longer among the songs that are open.", fix="Choose one from the table.")
        return found

    def look_at(self, page: str, song_id: str) -> None:
        """Remember which song a page is given to show."""
        with self.lock:
            self._looked_at.pop(page, None)  # the page looked at last stands last
            self._looked_at[page] = song_id
            if len(self._looked_at) > PAGES_KNOWN:
                del self._looked_at[next(iter(self._looked_at))]

    def moved_on(self, page: str, song_id: str) -> bool:
        """Whether a page was given another song by now, so that what is about this one comes too late to be drawn."""
        with self.lock:
            return self._looked_at.get(page, song_id) != song_id

    def set_label(self, song_id: str, name: str, value: Any, page: str, typing: bool = False) -> list[str]:
        """Set one label as `page` gave it and keep it; returns warnings.

        While somebody is `typing`, edits of the same label are one, so that one undo takes all of it back.
        """
        with self.lock:
            song = self.song(song_id)
            draft = set_labels([song], **{name: value})
            here = (page, song_id, name)
            if draft.songs:
                put = self.history.amend if self._typing == here else self.history.apply
                put(draft)
                self._note(draft, {(song_id, name): page})
            self._typing = here if typing and (draft.songs or self._typing == here) else None
            return list(draft.warnings)

    def end_typing(self) -> None:
        """The next edit is one of its own."""
        with self.lock:
            self._typing = None

    @contextmanager
    def labelling(self, song: Song) -> Iterator[None]:
        """While a machine changes the labels of a song nobody edits; afterwards every page shows what is new."""
        with self.lock:
            before = {name: getattr(song, name) for name in NOT_SAID}
            try:
                yield
            finally:  # also where the labels could be set but not kept, on a full disk
                self.revision += 1
                for name, value in before.items():
                    if getattr(song, name) != value:
                        self._touched[song.id, name] = self.revision, ""
                if self._typing and self._typing[1] == song.id:
                    self._typing = None

    def changed_outside(self) -> None:
        """Labels were changed and kept by other means: pages draw everything anew."""
        with self.lock:
            self.generation += 1
            self.revision += 1
            self._typing = None

    def apply(self, draft: Draft) -> Edit:
        """Make an edit of many songs and keep it."""
        with self.lock:
            edit = self.history.apply(draft)
            self._note(draft)
            return edit

    def undo(self) -> Edit:
        """Take the last edit of anyone back, on disk too. Raises UserError when there is none."""
        return self._step(self.history.undo)

    def redo(self) -> Edit:
        """Make the edit taken back last once more. Raises UserError when there is none."""
        return self._step(self.history.redo)

    def keep_in(self, file: Path) -> Path:
        """Save the dataset into a file and keep all further edits in it. Earlier edits cannot be taken back then."""
        with self.lock:
            dataset = self.history.dataset
            path = save_dataset(dataset, file)
            self._history = History(dataset, path)
            self._typing = None
            self.saved_at = self._clock()
            self.revision += 1
            return path

    def changed_by_others(self, song_id: str, page: str, since: int) -> dict[str, int]:
        """Labels of a song that were last changed elsewhere than on `page` after the revision `since`."""
        with self.lock:
            found = {name: self._touched.get((song_id, name), (0, "")) for name in NOT_SAID}
        return {name: revision for name, (revision, author) in found.items() if revision > since and author != page}

    def _step(self, move: Callable[[], Edit]) -> Edit:
        with self.lock:
            edit = move()
            self._note(edit.draft)
            self._typing = None
            return edit

    def _note(self, draft: Draft, authors: dict[tuple[str, str], str] | None = None) -> None:
        """Remember what was changed, and which page shows it already."""
        self.revision += 1
        self.saved_at, self.said = self._clock(), ""
        for before, after in draft.songs:
            for name in NOT_SAID:
                times = name == "lyrics" and before.timed_lyrics != after.timed_lyrics
                if times or getattr(before, name) != getattr(after, name):
                    self._touched[before.id, name] = self.revision, (authors or {}).get((before.id, name), "")
