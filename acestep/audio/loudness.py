"""Loudness: measuring it as broadcasters do, and bringing songs to a common level without clipping."""

from __future__ import annotations

import math
import warnings

import numpy as np

from acestep.audio.format import SAMPLE_RATE, SILENCE_PEAK
from acestep.settings.preprocess import Normalization

TARGET_LUFS = -14.0
PEAK_CEILING = np.float32(10 ** (-1 / 20))
"""-1 dBFS as a sample value."""

FULL_SCALE = np.float32(1.0)
_LOWEST_RATE = 4000  # the shelf of the weighting lies at 1500 Hz

BLOCK_S = 0.4
"""Length of the measuring block of ITU-R BS.1770; shorter sound has no integrated loudness."""


def integrated_loudness(samples: np.ndarray) -> float:
    """Integrated loudness in LUFS of samples [channels, N] or [N] at 48 kHz, K-weighted and gated (ITU-R BS.1770-4).

    -inf for sound that is silent, shorter than one 0.4 s block, or below the absolute gate of -70 LUFS throughout.
    """
    samples = np.atleast_2d(samples)
    if samples.shape[1] < BLOCK_S * SAMPLE_RATE or not _audible(samples):
        return -math.inf
    import pyloudnorm  # brings scipy, which takes most of a second to import

    # pyloudnorm averages the blocks above its gates; where there are none numpy warns about an empty mean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        meter = pyloudnorm.Meter(SAMPLE_RATE, block_size=BLOCK_S)
        loudness = float(meter.integrated_loudness(np.ascontiguousarray(samples.T, dtype=np.float64)))
    return loudness if math.isfinite(loudness) else -math.inf


class LoudnessMeter:
    """Integrated loudness of sound that arrives block by block; the same measure as `integrated_loudness`."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        from pyloudnorm.iirfilter import IIRfilter
        from scipy.signal import lfilter

        self._filter, self._measurable = lfilter, sample_rate >= _LOWEST_RATE
        # the two filters of K-weighting, as pyloudnorm's own meter has them
        shelf = IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, sample_rate, "high_shelf")
        high_pass = IIRfilter(0.0, 0.5, 38.0, sample_rate, "high_pass")
        self._stages = [(stage.b, stage.a, np.zeros((2, channels))) for stage in (shelf, high_pass)]
        self._channels, self._hop = channels, round(BLOCK_S / 4 * sample_rate)
        self._rest = np.zeros((0, channels))
        self._powers: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        """Take in the next samples [frames, channels]."""
        if not self._measurable:
            return
        weighted = block.astype(np.float64)
        for number, (b, a, state) in enumerate(self._stages):
            weighted, state = self._filter(b, a, weighted, axis=0, zi=state)
            self._stages[number] = (b, a, state)
        weighted = np.concatenate([self._rest, weighted])
        hops = len(weighted) // self._hop
        whole, self._rest = weighted[: hops * self._hop], weighted[hops * self._hop :]
        self._powers.append((whole.reshape(hops, self._hop, self._channels) ** 2).mean(axis=1).sum(axis=1))

    def integrated(self) -> float:
        """LUFS of what was pushed so far; -inf where there is none, and for sound with too low a sample rate."""
        powers = np.concatenate([np.zeros(0), *self._powers])
        if len(powers) < 4:
            return -math.inf
        blocks = np.convolve(powers, np.full(4, 0.25), mode="valid")  # overlapping by three quarters
        blocks = blocks[blocks > _power(-70.0)]
        if not len(blocks):
            return -math.inf
        gated = blocks[blocks > 0.1 * blocks.mean()]  # the relative gate lies 10 LU below
        return -0.691 + 10 * math.log10(gated.mean())


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def normalize(samples: np.ndarray, mode: Normalization) -> np.ndarray:
    """A copy of 48 kHz samples [2, N] at another level; one gain for the whole song, so its dynamics stay.

    none:      unchanged.
    peak:      the largest sample becomes -1 dBFS.
    lufs:      integrated loudness becomes -14 LUFS; where that would take a sample past full scale, the gain is
               held so that the largest sample is 1.0 and the song stays below -14 LUFS.
    peak_lufs: the same, held at -1 dBFS instead of full scale.

    No limiter or compressor is used. "Peak" means samples; the curve between them may lie a little higher.
    Silence is left alone; so is, in the two LUFS modes, sound without a loudness (shorter than 0.4 s, or never
    above -70 LUFS).
    """
    if mode == "none" or not _audible(samples):
        return samples.copy()
    peak = float(np.abs(samples).max())
    if mode == "peak":
        return _scaled(samples, math.inf, peak, PEAK_CEILING)
    loudness = integrated_loudness(samples)
    if loudness == -math.inf:
        return samples.copy()
    wanted = 10 ** ((TARGET_LUFS - loudness) / 20)
    return _scaled(samples, wanted, peak, FULL_SCALE if mode == "lufs" else PEAK_CEILING)


def _audible(samples: np.ndarray) -> bool:
    return samples.size > 0 and float(np.abs(samples).max()) >= SILENCE_PEAK


def _scaled(samples: np.ndarray, wanted_gain: float, peak: float, ceiling: np.float32) -> np.ndarray:
    """Samples times the wanted gain, or the largest gain that keeps them within the ceiling."""
    gain = np.float32(min(wanted_gain, float(ceiling) / peak))
    # rounded to float32 the gain may be a hair too large, and the peak would pass the ceiling
    if float(gain) * peak > float(ceiling):
        gain = np.nextafter(gain, np.float32(0))
    return samples * gain
