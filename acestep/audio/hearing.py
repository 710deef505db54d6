"""Listen to a sound file once, in little memory: its length, its loudness, and excerpts to analyse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acestep.audio.decode import check_finite
from acestep.audio.format import CHANNELS, SILENCE_PEAK
from acestep.audio.loudness import LoudnessMeter
from acestep.audio.sources import Source, open_source
from acestep.core.errors import UserError

RATE = 22_050
"""Sample rate of excerpts in Hz."""

WHOLE_S = 120.0
"""Longest piece of which everything is analysed."""

EXCERPTS, EXCERPT_S = 3, 40.0
"""Of longer ones: excerpts spread over the whole."""

_SHORTFALL_S = 0.1


@dataclass(frozen=True)
class Heard:
    """A sound file as analysis needs it. Excerpts are mono float32 at RATE with peak 1; silence has none."""

    duration_s: float
    loudness_lufs: float
    excerpts: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()


def hear(path: str | Path, frames: int = 0) -> Heard:
    """Read a sound file from start to end; at most WHOLE_S seconds of it are held.

    `frames` is its length where that is known better than the file states it.

    Raises UserError when it is missing, empty, unreadable, not audio, without sound, or holds NaN or infinite samples.
    """
    path = Path(path)
    with open_source(path) as source:
        channels = min(source.channels, CHANNELS)
        places = _places(frames or source.count_frames(), source.sample_rate)
        windows = [_Window(source, first, last) for first, last in places]
        meter = LoudnessMeter(source.sample_rate, channels)
        position, peak = 0, 0.0
        for block in source.blocks():
            check_finite(path, block, position, source.sample_rate)
            peak = max(peak, float(np.abs(block).max()))
            meter.push(block)
            for window in windows:
                window.push(block, position)
            position += len(block)
        if not position:
            raise UserError(f"{path} holds no sound.", fix="Copy or export it again, or remove it.")
        if len(places) > 1 and position < places[-1][1]:
            return hear(path, position)  # a file that is cut off states more than it holds
        heard = tuple(samples for window in windows if len(samples := window.finish()))
        return Heard(
            position / source.sample_rate,
            meter.integrated() if math.isfinite(peak) else -math.inf,
            heard if SILENCE_PEAK <= peak < math.inf else (),
            _notes(source, position),
        )


def _notes(source: Source, frames: int) -> tuple[str, ...]:
    """What is worth telling about a file of which `frames` could be read."""
    missing = (source.declared_frames or 0) - frames
    if missing > _SHORTFALL_S * source.sample_rate:
        read_s, stated_s = frames / source.sample_rate, (source.declared_frames or 0) / source.sample_rate
        return (f"only {read_s:.1f} of its {stated_s:.1f} s can be decoded; that part is used",)
    return ("is damaged; the parts that can be decoded are used",) if source.damage else ()


def _places(frames: int, rate: int) -> list[tuple[int, int]]:
    """First and last source frame of each excerpt."""
    if frames <= WHOLE_S * rate:
        return [(0, math.ceil(WHOLE_S * rate))]  # files can be a little longer than they say
    length = round(EXCERPT_S * rate)
    gap = (frames - EXCERPTS * length) // (EXCERPTS + 1)
    firsts = [gap + number * (length + gap) for number in range(EXCERPTS)]
    return [(first, first + length) for first in firsts]


class _Window:
    """Gathers the source frames from `first` to `last` as mono sound at RATE."""

    def __init__(self, source: Source, first: int, last: int) -> None:
        import soxr

        self._first, self._last = first, last
        self._stream = soxr.ResampleStream(source.sample_rate, RATE, 1, dtype="float32", quality="HQ")
        self._pieces: list[np.ndarray] = []

    def push(self, block: np.ndarray, position: int) -> None:
        part = block[max(0, self._first - position) : max(0, self._last - position)]
        if len(part):
            self._pieces.append(self._stream.resample_chunk(np.ascontiguousarray(part.mean(axis=1))))

    def finish(self) -> np.ndarray:
        self._pieces.append(self._stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
        samples = np.concatenate(self._pieces)
        peak = float(np.abs(samples).max(initial=0.0))
        return samples / peak if peak else samples
