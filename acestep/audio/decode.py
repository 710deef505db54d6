"""Decode any sound file to the form a model hears: float32, for ACE-Step 48 kHz and two channels.

The rules are those of ACE-Step's own preprocessing: mono is doubled, of more than two channels the first
two are kept (no downmix), long files are cut from their start, nothing is padded, scaled or clamped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acestep.audio.format import CHANNELS, MIN_DURATION_S, SAMPLE_RATE, SILENCE_PEAK
from acestep.audio.sources import Source, open_source
from acestep.core.errors import UserError

RESAMPLE_QUALITY = "VHQ"

_SHORTFALL_S = 0.1  # encoders pad; a file that ends this much early is not worth a word
_LOUD_PEAK = 4.0  # 12 dB above full scale: no mix does that on purpose
_RESAMPLER_LOOKAHEAD_S = 0.25  # read past a cut, so that the cut sounds as in the whole song


@dataclass(frozen=True)
class AudioInfo:
    """What a file says about itself: duration in seconds, sample rate in Hz and channels, as they are on disk."""

    duration_s: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Audio:
    """Decoded sound: float32 samples [channels, N], full scale 1.0, and what was odd about the file."""

    samples: np.ndarray
    warnings: tuple[str, ...] = ()
    sample_rate: int = SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def probe(path: str | Path) -> AudioInfo:
    """Duration, sample rate and channels without decoding.

    Where the container does not state its length (MP3 without a header, raw AAC) the packets are counted.
    Raises UserError when the file is missing, empty, unreadable, not audio, or a header without sound.
    """
    path = Path(path)
    with open_source(path) as source:
        frames = source.count_frames()
        if frames <= 0:
            raise _no_sound(path)
        return AudioInfo(frames / source.sample_rate, source.sample_rate, source.channels)


def decode(
    path: str | Path, max_duration_s: float = 0.0, *, sample_rate: int = SAMPLE_RATE, channels: int = CHANNELS
) -> Audio:
    """Decode a file to float32 [channels, N] at `sample_rate` Hz; at most `max_duration_s` seconds from its start.

    0 takes all of it. One channel is the mean of two; it and the rate are made block by block, so that nothing larger
    is ever held. Only the needed part is read. A file that is damaged or cut off gives the part that is there, with a
    warning. Raises UserError when nothing can be used: missing, empty, unreadable, not audio, no sound in
    it, NaN or infinite samples, silence, shorter than MIN_DURATION_S.
    """
    path = Path(path)
    with open_source(path) as source:
        samples, frames_read = _read(path, source, max_duration_s, sample_rate, channels)
        warnings = _shortfall(path, source, frames_read, max_duration_s)
        if source.channels > CHANNELS:
            warnings.append(f"has {source.channels} channels; the first two are used")
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise UserError(f"{path} holds samples too large to compute with.", fix="Export it again at a normal level.")
    if peak < SILENCE_PEAK:
        raise UserError(f"{path} is silent.", fix="Export it again or remove it.")
    _check_length(path, samples.shape[1] / sample_rate, max_duration_s)
    if peak > _LOUD_PEAK:
        decibels = 20 * math.log10(peak)
        warnings.append(f"peaks {decibels:.0f} dB above full scale; normalise it or export it again")
    return Audio(samples, tuple(warnings), sample_rate)


def _read(path: Path, source: Source, max_duration_s: float, sample_rate: int, channels: int) -> tuple[np.ndarray, int]:
    """Samples [channels, N] at `sample_rate`, and how many frames were read from the file."""
    resampler = _Resampler(source.sample_rate, sample_rate, min(source.channels, channels))
    limit = math.inf
    if max_duration_s:
        limit = math.ceil((max_duration_s + _RESAMPLER_LOOKAHEAD_S) * source.sample_rate)
    pieces: list[np.ndarray] = []
    frames_read = 0
    for block in source.blocks():
        block = block[: int(min(len(block), limit - frames_read))]
        check_finite(path, block, frames_read, source.sample_rate)
        frames_read += len(block)
        pieces.append(resampler.push(block.mean(axis=1, keepdims=True) if channels == 1 else block))
        if frames_read >= limit:
            break
    if not frames_read:
        raise _no_sound(path, source.damage)
    pieces.append(resampler.finish())
    samples = np.concatenate(pieces, axis=1)
    if max_duration_s:
        samples = samples[:, : round(max_duration_s * sample_rate)]
    if len(samples) < channels:
        samples = np.repeat(samples, channels, axis=0)
    return np.ascontiguousarray(samples), frames_read


class _Resampler:
    """Resamples blocks [frames, channels] of one stream to [channels, samples]."""

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._channels = channels
        self._stream = None
        if from_rate != to_rate:
            import soxr

            self._stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality=RESAMPLE_QUALITY)

    def push(self, block: np.ndarray) -> np.ndarray:
        resampled = block if self._stream is None else self._stream.resample_chunk(block)
        return np.ascontiguousarray(resampled.T)

    def finish(self) -> np.ndarray:
        """What the filter still held back."""
        nothing = np.zeros((0, self._channels), dtype=np.float32)
        return (nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)).T


def check_finite(path: Path, block: np.ndarray, first_frame: int, sample_rate: int) -> None:
    """Raise a UserError that says where a block [frames, channels] holds NaN or infinite samples."""
    finite = np.isfinite(block)
    if not finite.all():
        where_s = (first_frame + int(np.argmin(finite.all(axis=1)))) / sample_rate
        raise UserError(
            f"{path} holds NaN or infinite samples, the first near {where_s:.1f} s.",
            fix="Export it again from the program that made it.",
        )


def _shortfall(path: Path, source: Source, frames_read: int, max_duration_s: float) -> list[str]:
    """Warnings about missing parts; a UserError when too little is left."""
    read_s = frames_read / source.sample_rate
    stated_s = (source.declared_frames or 0) / source.sample_rate
    expected_s = min(stated_s, max_duration_s) if max_duration_s else stated_s
    if read_s < expected_s - _SHORTFALL_S:
        if read_s < MIN_DURATION_S:
            raise UserError(
                f"{path} is cut off or damaged: only {read_s:.2f} of its {stated_s:.1f} s can be decoded.",
                fix="Copy or export it again, or remove it.",
                detail=source.damage,
            )
        return [f"only {read_s:.1f} of its {stated_s:.1f} s can be decoded; that part is used"]
    if source.damage:
        return ["is damaged; the parts that can be decoded are used"]
    return []


def _check_length(path: Path, duration_s: float, max_duration_s: float) -> None:
    shortest_s = min(MIN_DURATION_S, max_duration_s) if max_duration_s else MIN_DURATION_S
    if duration_s < shortest_s:
        raise UserError(
            f"{path} is {duration_s:.2f} s long; at least {MIN_DURATION_S:g} s is needed.",
            fix="Use a longer file or remove it.",
        )


def _no_sound(path: Path, damage: str = "") -> UserError:
    what = "is damaged: none of its sound can be decoded" if damage else "holds no sound"
    return UserError(f"{path} {what}.", fix="Copy or export it again, or remove it.", detail=damage)
