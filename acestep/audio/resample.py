"""Songs in the form a labelling model hears: any sample rate, one or two channels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acestep.audio.decode import decode
from acestep.audio.format import SAMPLE_RATE

LONGEST_HEARD_S = 1200.0
"""Longer songs are heard to this point, which bounds the memory a song takes."""


@dataclass(frozen=True)
class Resampled:
    """Samples [channels, N] as a model hears them, and what was odd about the file."""

    samples: np.ndarray
    warnings: tuple[str, ...] = ()


def decode_as(path: str | Path, sample_rate: int, channels: int, max_duration_s: float = LONGEST_HEARD_S) -> Resampled:
    """Decode a file to float32 [channels, N] at `sample_rate` Hz; one channel is the mean of two.

    Raises UserError as `decode` does.
    """
    audio = decode(path, max_duration_s)
    samples = audio.samples.mean(axis=0, keepdims=True, dtype=np.float32) if channels == 1 else audio.samples
    if sample_rate != SAMPLE_RATE:
        import soxr

        samples = np.ascontiguousarray(soxr.resample(samples.T, SAMPLE_RATE, sample_rate, quality="HQ").T)
    return Resampled(samples, audio.warnings)
