"""What is right about a piece of music, in numbers: tempo, key, metre, and what a simple classifier hears in it.

Everything here works on samples or on values that were found already, and knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.key import NAMES

TEMPO_TOLERANCE = 0.04
OCTAVES = (2.0, 0.5, 3.0, 1 / 3)
"""Ratios of a beat that was counted on another level."""

FIFTH, RELATIVE, PARALLEL = 0.5, 0.3, 0.2
"""What MIREX gives for a key that is near the right one."""

BANDS = 64
LOWEST_HZ, HIGHEST_HZ = 40.0, 12_000.0
FLOOR_DB = -60.0
"""Below the mean power of the piece; what is softer counts as silent."""
_FFT, _HOP = 2048, 960  # 43 ms, 20 ms at 48 kHz


def key_score(wanted: str | None, found: str | None) -> float:
    """MIREX: 1 the same key, 0.5 a fifth up or down, 0.3 the relative, 0.2 the parallel key. Names as "F# minor"."""
    if wanted is None or found is None:
        return 0.0
    tonic, mode = _tonic_and_mode(wanted)
    other, other_mode = _tonic_and_mode(found)
    away = (other - tonic) % 12
    if mode == other_mode:
        return {0: 1.0, 5: FIFTH, 7: FIFTH}.get(away, 0.0)
    if away == 0:
        return PARALLEL
    return RELATIVE if away == (9 if mode == "major" else 3) else 0.0


def _tonic_and_mode(name: str) -> tuple[int, str]:
    letter, mode = name.split()
    return NAMES[mode].index(letter), mode


def tempo_is_right(wanted_bpm: float, found_bpm: float | None, tolerance: float = TEMPO_TOLERANCE) -> bool:
    return found_bpm is not None and abs(found_bpm / wanted_bpm - 1) <= tolerance


def tempo_is_octave(wanted_bpm: float, found_bpm: float | None, tolerance: float = TEMPO_TOLERANCE) -> bool:
    """Whether the beat was counted twice or three times as fast or slow."""
    return any(tempo_is_right(wanted_bpm * ratio, found_bpm, tolerance) for ratio in OCTAVES)


def share_of_way(value: float, start: float, goal: float) -> float:
    """How far a value has come from `start` (0) to `goal` (1); not a number where both are the same."""
    return (value - start) / (goal - start) if goal != start else float("nan")


def chance_agreement(table: np.ndarray) -> float:
    """Mean of table[found in i, wanted of j] over all i ≠ j: every way of giving pieces the prompt of another."""
    count = len(table)
    return float((table.sum() - np.trace(table)) / (count * (count - 1)))


# Listening


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Mid and side in mel bands.  (2, N) at 48 kHz → (2, BANDS, T) in dB relative to the mean power of the mid."""
    mid, side = (samples[0] + samples[1]) / 2, (samples[0] - samples[1]) / 2
    power = np.stack([_mel_power(mid), _mel_power(side)])
    level = max(float(power[0].mean()), 1e-12)
    return np.maximum(10 * np.log10(power / level + 1e-12), FLOOR_DB)


def _mel_power(sound: np.ndarray) -> np.ndarray:
    frames = np.lib.stride_tricks.sliding_window_view(sound, _FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * np.hanning(_FFT).astype(np.float32), axis=1)
    return _mel_filters() @ (spectrum.real**2 + spectrum.imag**2).T


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    import librosa

    return librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_FFT, n_mels=BANDS, fmin=LOWEST_HZ, fmax=HIGHEST_HZ)


def statistics_of(samples: np.ndarray) -> np.ndarray:
    """Mean, spread and movement from frame to frame of every band of mid and side.  (2, N) → (3, 2, BANDS) in dB."""
    return _statistics(log_mel(samples))


def _statistics(bands: np.ndarray) -> np.ndarray:
    return np.stack([bands.mean(axis=2), bands.std(axis=2), np.abs(np.diff(bands, axis=2)).mean(axis=2)])


def features_of(samples: np.ndarray) -> np.ndarray:
    """What the classifier sees of a piece: `statistics_of`, quantiles, and what happens where the sound sets in."""
    bands = log_mel(samples)
    rising = np.maximum(np.diff(bands, axis=2), 0)
    means = bands - bands.mean(axis=1, keepdims=True)
    parts = [
        _statistics(bands),
        np.quantile(bands, (0.1, 0.5, 0.9, 0.98), axis=2),
        np.quantile(rising, (0.9, 0.98), axis=2),
        (means[:, :, :-4] * means[:, :, 4:]).mean(axis=2),
    ]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


@dataclass(frozen=True)
class Listener:
    """Tells a class from features: linear discriminant analysis on real pieces, its covariance shrunk."""

    model: Any
    names: tuple[str, ...]

    @classmethod
    def trained(cls, features: np.ndarray, truths: Sequence[str]) -> Listener:
        """features: (pieces, F)."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
        return cls(model.fit(features, list(truths)), tuple(sorted(set(truths))))

    def tell(self, features: np.ndarray) -> list[str]:
        """The likeliest class of each piece.  features: (pieces, F)."""
        return [str(name) for name in self.model.predict(features)]
