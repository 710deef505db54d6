"""Keeping the labels of a batch song by song: which refusal is trouble with one song, and which one ends the batch."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from acestep.core.errors import Problem, UserError
from acestep.dataset.label_files import LabelWriter
from acestep.dataset.song import Song

MOST_REFUSED = 5
"""Songs in a row whose labels may find no place before the batch ends; answers for the rest would be lost too."""

_WHOLE_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))


@dataclass
class Keeper:
    """Keeps the labels of songs. A song whose own file refuses them is left out of the rest of the batch.

    `in_one_file` says that `writer` keeps all labels in one dataset file, where no refusal is that of a single song.
    Labels that found no place stay in memory: the dataset may still be saved elsewhere.
    """

    writer: LabelWriter
    in_one_file: bool
    problems: list[Problem]
    _left_out: set[str] = field(default_factory=set)
    _refused_in_a_row: int = 0

    def has_place(self, song: Song) -> bool:
        """Can the labels of a song be kept, as far as can be told before? If not, that is told once."""
        if song.relative in self._left_out:
            return False
        try:
            self.writer.check(song)
        except UserError as error:
            self._leave_out(song, error)
            return False
        return True

    def take_over(self, song: Song) -> frozenset[str] | None:
        """What somebody typed into the song's file meanwhile, now in the song; None where that file has no place."""
        try:
            return self.writer.take_over(song)
        except UserError as error:
            self._refused(song, error)
            return None

    def write(self, song: Song) -> bool:
        """Keep the labels of a song. False where its file refuses them, which is told as its problem.

        Raises UserError where further songs would be refused too: by the dataset file, by a full or read-only disk,
        or after MOST_REFUSED songs in a row.
        """
        try:
            self.writer.write(song)
        except (UserError, OSError) as error:
            if self.in_one_file:
                raise
            self._refused(song, error if isinstance(error, UserError) else _in_words(error))
            return False
        self._refused_in_a_row = 0
        return True

    def _refused(self, song: Song, error: UserError) -> None:
        self._leave_out(song, error)
        self._refused_in_a_row += 1
        if any(cause.errno in _WHOLE_DISK for cause in _system_errors(error)):
            raise error
        if self._refused_in_a_row >= MOST_REFUSED:
            raise UserError(
                f"The labels of {MOST_REFUSED} songs in a row could not be kept: {error.message}", fix=error.fix
            ) from error

    def _leave_out(self, song: Song, error: UserError) -> None:
        self.problems.append(Problem(song.relative, str(error)))
        self._left_out.add(song.relative)


def _in_words(error: OSError) -> UserError:
    """A refusal that the writer has no sentence for, such as that of a drive that was taken out."""
    told = UserError(f"Its labels cannot be written ({error.strerror or error}).", fix="Check the drive it is on.")
    told.__cause__ = error
    return told


def _system_errors(error: BaseException | None) -> Iterator[OSError]:
    """The errors of the system that an error came from."""
    while error is not None:
        if isinstance(error, OSError):
            yield error
        error = error.__cause__
