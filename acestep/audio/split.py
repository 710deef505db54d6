"""Cut a long recording into pieces, without loss and in its own sample rate, block by block.

Pieces are cut at equal lengths, or at the quietest place near each of those. Nothing is left out: a last piece that
would be very short stays with the one before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acestep.audio.format import CHANNELS, MIN_DURATION_S
from acestep.audio.sources import open_source
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import atomic_file

if TYPE_CHECKING:
    import soundfile

PieceSuffix = Literal[".flac", ".wav"]

_FORMATS: dict[str, dict[str, str]] = {
    ".flac": {"format": "FLAC", "subtype": "PCM_24"},
    ".wav": {"format": "WAV", "subtype": "FLOAT"},
}
_SHORTEST_TAIL_S = 10.0
_HOP_S = 0.05
_QUIET_S = 0.3  # a breath; a shorter gap is often just the time between two beats
_SEARCH = 0.25  # of a piece's length, on each side of the wished cut


@dataclass(frozen=True)
class Piece:
    """A piece of a recording: its file, and where it begins and ends in the recording, in seconds."""

    path: Path
    start_s: float
    end_s: float


def split_audio(
    path: str | Path,
    folder: str | Path,
    length_s: float,
    *,
    overlap_s: float = 0.0,
    at_silence: bool = False,
    suffix: PieceSuffix = ".flac",
    job: Job | None = None,
) -> list[Piece]:
    """Write the pieces of a recording to `folder` as NAME_001.flac and so on, and return them.

    `overlap_s` lets every piece but the first begin that much earlier; `at_silence` moves cuts to quiet places, at
    most a quarter of `length_s` away. flac holds 24 bits, wav 32-bit floats (sound above full scale stays whole).
    Of more than two channels the first two are kept. Raises UserError for sound that cannot be read or is NaN, for
    lengths that make no sense, and where a file of that name exists; then, and when stopped, no piece is left.
    """
    path, folder, job = Path(path), Path(folder).expanduser(), job or Job()
    _check_lengths(length_s, overlap_s, suffix)
    ranges, sample_rate = _plan(path, length_s, overlap_s, at_silence, job)
    targets = [folder / f"{path.stem}_{number:03d}{suffix}" for number in range(1, len(ranges) + 1)]
    for target in targets:
        if target.exists():
            raise UserError(f"{target} exists already.", fix="Choose a new folder or remove the pieces.")
    written: list[Path] = []
    try:
        ends = _write(path, ranges, targets, suffix, job, written)
    except BaseException:
        for target in written:
            target.unlink(missing_ok=True)
        raise
    return [
        Piece(target, start / sample_rate, end / sample_rate)
        for target, (start, _), end in zip(targets, ranges, ends, strict=False)
    ]


def _check_lengths(length_s: float, overlap_s: float, suffix: str) -> None:
    if not MIN_DURATION_S <= length_s <= 3600:
        raise UserError(f"Pieces of {length_s:g} s cannot be made.", fix=f"Choose {MIN_DURATION_S:g} to 3600 s.")
    if not 0 <= overlap_s <= length_s / 2:
        raise UserError(f"Pieces cannot overlap by {overlap_s:g} s.", fix="Choose 0 to half of their length.")
    if suffix not in _FORMATS:
        raise UserError(f'Pieces cannot be written as "{suffix}".', fix=f"Choose {' or '.join(_FORMATS)}.")


def _plan(
    path: Path, length_s: float, overlap_s: float, at_silence: bool, job: Job
) -> tuple[list[tuple[int, int]], int]:
    """First frame and end of every piece, and the frames in a second."""
    with open_source(path) as source:
        rate, total = source.sample_rate, source.count_frames()
        loudness = _loudness(source.blocks(), round(_HOP_S * rate), job) if at_silence else None
    duration_s = total / rate
    if loudness is not None:
        duration_s = min(duration_s, len(loudness) * _HOP_S)  # files that are cut off state more than they hold
    cuts = _cuts(duration_s, length_s, loudness)
    frames = [round(cut * rate) for cut in cuts]
    overlap = round(overlap_s * rate)
    bounds = [*frames, 1 << 62]  # to the end, wherever that turns out to be
    return [(max(start - overlap, 0), end) for start, end in pairwise(bounds)], rate


def _loudness(blocks: Any, hop: int, job: Job) -> np.ndarray:
    """Power of each hop, all channels together, averaged over a breath."""
    powers, rest = [], np.zeros(0, dtype=np.float32)
    for block in blocks:
        job.check_stop()
        power = np.concatenate([rest, np.einsum("ij,ij->i", block, block)])
        whole = len(power) // hop * hop
        powers.append(power[:whole].reshape(-1, hop).mean(axis=1))
        rest = power[whole:]
    width = round(_QUIET_S / _HOP_S)
    return np.convolve(np.concatenate([*powers, [0.0]]), np.ones(width) / width, mode="same")


def _cuts(duration_s: float, length_s: float, loudness: np.ndarray | None) -> list[float]:
    """Where pieces begin, in seconds: 0 first."""
    shortest_s = min(_SHORTEST_TAIL_S, length_s / 2)
    reach_s = _SEARCH * length_s if loudness is not None else 0.0
    cuts = [0.0]
    while duration_s - cuts[-1] - length_s >= shortest_s:
        wished = cuts[-1] + length_s
        if loudness is not None:
            first = round((wished - reach_s) / _HOP_S)
            last = round(min(wished + reach_s, duration_s - shortest_s) / _HOP_S)
            window = loudness[first : last + 1]
            centres = (np.arange(first, first + len(window)) + 0.5) * _HOP_S
            quietest = np.flatnonzero(window <= window.min() + 1e-12)
            wished = float(min(centres[quietest], key=lambda centre: abs(centre - wished)))
        cuts.append(wished)
    return cuts


def _write(
    path: Path,
    ranges: Sequence[tuple[int, int]],
    targets: Sequence[Path],
    suffix: str,
    job: Job,
    written: list[Path],
) -> list[int]:
    """Write all pieces in one pass over the sound; finished ones are noted in `written`. Returns where each ends."""
    writers: dict[int, _Writer] = {}
    ends = []
    position = following = 0
    with contextlib.ExitStack() as stack, open_source(path) as source:
        stack.callback(_abandon_all, writers)
        channels = min(source.channels, CHANNELS)
        for block in source.blocks():
            job.check_stop()
            if not np.isfinite(block).all():
                raise UserError(
                    f"{path} holds NaN or infinite samples, near {position / source.sample_rate:.1f} s.",
                    fix="Export it again from the program that made it.",
                )
            stop = position + len(block)
            while following < len(ranges) and ranges[following][0] < stop:
                writers[following] = _Writer(targets[following], source.sample_rate, channels, suffix)
                following += 1
            for number, writer in list(writers.items()):
                start, end = ranges[number]
                writer.write(block[max(start - position, 0) : max(end - position, 0)])
                if end <= stop:
                    writers.pop(number).finish()
                    written.append(targets[number])
                    ends.append(end)
            position = stop
        if not position:
            raise UserError(f"{path} holds no sound.", fix="Copy or export it again, or remove it.")
        for number in sorted(writers):
            writers.pop(number).finish()
            written.append(targets[number])
            ends.append(position)
    return ends


class _Writer:
    """One piece being written under a temporary name."""

    def __init__(self, target: Path, sample_rate: int, channels: int, suffix: str) -> None:
        import soundfile

        self._target = target
        self._error = soundfile.LibsndfileError
        self._stack = contextlib.ExitStack()
        temporary = self._stack.enter_context(atomic_file(target))
        try:
            self._file: soundfile.SoundFile = self._stack.enter_context(
                soundfile.SoundFile(temporary, "w", sample_rate, channels, **_FORMATS[suffix])
            )
        except soundfile.LibsndfileError as error:
            self.abandon()
            raise UserError(
                f"{target} could not be written at {sample_rate} Hz: {error}", fix="Choose wav pieces."
            ) from error

    def write(self, block: np.ndarray) -> None:
        try:
            self._file.write(block)
        except self._error as error:
            raise UserError(
                f"{self._target} could not be written: {error}", fix="Check the free space on the disk."
            ) from error

    def finish(self) -> None:
        self._stack.close()

    def abandon(self) -> None:
        """Remove what was written."""
        abandoned = _Abandoned()
        with contextlib.suppress(_Abandoned):
            self._stack.__exit__(_Abandoned, abandoned, None)


def _abandon_all(writers: dict[int, _Writer]) -> None:
    for writer in writers.values():
        writer.abandon()


class _Abandoned(Exception):
    """Ends a write that shall leave no file."""
