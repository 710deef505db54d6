"""Whether the files that a dataset was read from still look as they did then: size and time, never their content.

What this program writes itself is noted as it is written, so that what looks otherwise was changed by somebody else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.dataset.archive import LABEL_SUFFIXES
from acestep.dataset.walk import is_skipped

_SUFFIXES = AUDIO_SUFFIXES | LABEL_SUFFIXES

Look = tuple[int, int] | None
"""When a file was changed last, in ns, and its size in bytes; None where there is no such file."""


@dataclass
class FilesRead:
    """The files of a dataset as they looked when this program read or wrote them last.

    `overtaken` says that this program wrote into one that another had changed, which cannot be seen at the file any
    more.
    """

    overtaken: bool = False
    _looks: dict[Path, Look] = field(default_factory=dict)
    _folders: set[Path] = field(default_factory=set)

    def note(self, *files: Path) -> None:
        """Take note of files: before they are read, so that a change meanwhile is seen, or after they were written."""
        self._looks.update((file, _look(file)) for file in _places(files))

    def note_folders(self, folders: Iterable[Path]) -> None:
        """Take note of the songs and label files of folders, and of those that may come there."""
        for folder in folders:
            self._folders.add(folder)
            self._looks.update((file, _look(file)) for file in _files_in(folder))

    @contextlib.contextmanager
    def written(self, *files: Path) -> Iterator[None]:
        """Inside the block this program writes these files."""
        if any(_look(file) != self._looks.get(file) for file in _places(files)):
            self.overtaken = True
        try:
            yield
        finally:
            self.note(*files)

    def changed(self, file: Path | None) -> bool:
        """Whether another program has changed what the labels are kept in: the dataset file `file`, or the folders."""
        if self.overtaken:
            return True
        if file is not None:
            return any(_look(place) != self._looks.get(place) for place in _places([file]))
        looks = self._looks.copy()  # another thread may write
        for folder in self._folders:
            looks = dict.fromkeys(_files_in(folder)) | looks
        return any(_look(place) != look for place, look in looks.items())


def _places(files: Iterable[Path]) -> list[Path]:
    """One name for each file, however its folder is spelled; a link has a name of its own."""
    return [file.parent.resolve() / file.name for file in files]


def _look(file: Path) -> Look:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _files_in(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and not is_skipped(file.name)]
    except OSError:  # it is gone: what was noted of it tells
        return []
