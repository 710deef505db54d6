"""Where a beat could lie in a piece of music: candidates for tempo and metre, and how the music repeats at each.

Nothing is decided here. A candidate is a beat period with one of four metres. What speaks for or against it is how
strongly onsets (all, low, middle, high), chords and chord changes repeat after the periods which that beat and bar
would have; it is all autocorrelation, so no beat has to be placed. `weighing.py` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acestep.audio.hearing import RATE
from acestep.audio.pitch import Pitches

METRES = ("2", "3", "4", "6")
TEMPO_RANGE = (50.0, 210.0)
"""Tempi that can be told, in beats a minute; in 6/8 the beat is the dotted quarter."""

HOP = 256
MULTIPLES = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Periods looked at, in beats of the candidate."""

CURVES = ("all", "low", "middle", "high", "harmony", "change")
_MOST_S = 10.0
_BANDS_HZ = {"low": (0.0, 170.0), "middle": (170.0, 2500.0), "high": (2500.0, RATE / 2)}
_TEMPO_GRID = 30.0 * 2 ** (np.arange(0, 4.01, 1 / 96))  # 30 to 480 a minute in steps of 0.7 %
_RELATIVES = (1 / 3, 1 / 2, 2 / 3, 1.0, 1.5, 2.0, 3.0)
_STRONGEST = 8
_SAME_TEMPO = 1.03


@dataclass(frozen=True)
class Repetition:
    """Autocorrelation of a curve, averaged over excerpts: `values[i]` at lag i / rate, 1 at lag 0."""

    values: np.ndarray
    rate: float

    def at(self, lags_s: np.ndarray) -> np.ndarray:
        """Values at lags in seconds, 0 beyond what was measured."""
        return np.interp(lags_s * self.rate, np.arange(len(self.values)), self.values, right=0.0)

    def strength(self) -> float:
        """The most the curve repeats itself after 0.2 to 4 s."""
        part = self.values[round(0.2 * self.rate) : round(4 * self.rate)]
        return float(part.max()) if len(part) else 0.0


@dataclass(frozen=True)
class Rhythm:
    """How a piece repeats itself, by curve, and how many onsets it has a second."""

    repetitions: dict[str, Repetition]
    onsets_per_s: float


def listen_for_rhythm(excerpts: tuple[np.ndarray, ...], pitches: list[Pitches]) -> Rhythm:
    """Measure the repetition of mono excerpts at RATE and of their pitches."""
    gathered: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in CURVES}
    onsets, seconds = 0, 0.0
    for samples, pitch in zip(excerpts, pitches, strict=True):
        bands = _onset_curves(samples)
        onsets += _count_peaks(bands["all"])
        seconds += len(samples) / RATE
        chroma = pitch.chroma - pitch.chroma.mean(axis=1, keepdims=True)
        change = np.maximum(0.0, np.diff(pitch.chroma, axis=1, prepend=pitch.chroma[:, :1])).sum(axis=0)
        curves = {**{name: (curve[None], RATE / HOP) for name, curve in bands.items()}}
        curves |= {"harmony": (chroma, pitch.rate), "change": (change[None], pitch.rate)}
        for name, (curve, rate) in curves.items():
            gathered[name].append((_autocorrelation(curve, rate), rate))
    repetitions = {name: _averaged(parts) for name, parts in gathered.items()}
    return Rhythm(repetitions, onsets / max(seconds, 1e-9))


def candidates(rhythm: Rhythm) -> np.ndarray:
    """Tempi [K] worth a thought: the strongest periods, their halves, doubles and thirds, each tuned finely."""
    salience = _comb(rhythm, _TEMPO_GRID)
    inner = salience[1:-1]
    peaks = 1 + np.flatnonzero((inner > salience[:-2]) & (inner >= salience[2:]))
    strongest = peaks[np.argsort(-salience[peaks])][:_STRONGEST]
    found: list[float] = []
    for tempo in (float(_TEMPO_GRID[place]) * ratio for ratio in _RELATIVES for place in strongest):
        if TEMPO_RANGE[0] <= tempo <= TEMPO_RANGE[1]:
            tuned = _tuned(rhythm, tempo)
            if all(not 1 / _SAME_TEMPO < tuned / other < _SAME_TEMPO for other in found):
                found.append(tuned)
    return np.array(found)


def features(rhythm: Rhythm, tempi: np.ndarray) -> np.ndarray:
    """What is known of each tempo [K] as numbers [K, F]; the same for every metre."""
    period_s = 60.0 / tempi
    columns = [np.ones_like(tempi)]
    for name in CURVES:
        repetition = rhythm.repetitions[name]
        scale = max(0.1, repetition.strength())
        columns += [repetition.at(period_s * multiple) / scale for multiple in MULTIPLES]
    octave = np.log2(tempi / 110.0)
    density = np.clip(np.log2(np.maximum(rhythm.onsets_per_s * period_s, 1e-3)), -3, 4)
    columns += [octave, octave**2, density, density**2]
    columns += [np.full_like(tempi, rhythm.repetitions[name].strength()) for name in CURVES]
    return np.stack(columns, axis=1)


def _onset_curves(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Rise of loudness in mel bands, averaged over all of them and over three ranges."""
    import librosa

    mel = librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=1024, hop_length=HOP, n_mels=48, fmin=30.0)
    loud = librosa.power_to_db(mel, ref=np.max, top_db=70.0)
    rise = np.maximum(0.0, loud[:, 2:] - loud[:, :-2])
    centres = librosa.mel_frequencies(n_mels=48, fmin=30.0, fmax=RATE / 2)
    curves = {"all": rise.mean(axis=0)}
    for name, (low, high) in _BANDS_HZ.items():
        curves[name] = rise[(centres >= low) & (centres < high)].mean(axis=0)
    return curves


def _autocorrelation(curve: np.ndarray, rate: float) -> np.ndarray:
    """Unbiased autocorrelation of a curve [rows, frames] up to _MOST_S, 1 at lag 0, slow changes removed."""
    from scipy.ndimage import uniform_filter1d

    frames = curve.shape[1]
    flat = curve - uniform_filter1d(curve, max(1, round(3 * rate)), axis=1, mode="nearest")
    spectrum = np.fft.rfft(flat, 2 * frames, axis=1)
    power = np.fft.irfft((np.abs(spectrum) ** 2).sum(axis=0), 2 * frames)
    lags = min(round(_MOST_S * rate), frames // 2) + 1  # longer ones would rest on too little
    unbiased = power[:lags] / (frames - np.arange(lags))
    return np.asarray(unbiased / unbiased[0] if unbiased[0] > 1e-9 else np.zeros(lags))


def _averaged(parts: list[tuple[np.ndarray, float]]) -> Repetition:
    shortest = min(len(values) for values, _ in parts)
    return Repetition(np.mean([values[:shortest] for values, _ in parts], axis=0), parts[0][1])


def _count_peaks(curve: np.ndarray) -> int:
    inner = curve[1:-1]
    threshold = curve.mean() + 0.5 * curve.std()
    return int(((inner > curve[:-2]) & (inner >= curve[2:]) & (inner > threshold)).sum())


def _comb(rhythm: Rhythm, tempi: np.ndarray) -> np.ndarray:
    """How well everything repeats after one, two, three and four beats of each tempo."""
    period_s = 60.0 / tempi
    onsets, change = rhythm.repetitions["all"], rhythm.repetitions["change"]
    return np.asarray(
        sum(
            weight * (onsets.at(period_s * beats) + 0.3 * change.at(period_s * beats))
            for beats, weight in ((1, 1.0), (2, 1.0), (3, 0.6), (4, 0.8))
        )
    )


def _tuned(rhythm: Rhythm, tempo: float) -> float:
    """The tempo within 2.5 % at which long periods fit best."""
    near = tempo * (1 + np.linspace(-0.025, 0.025, 101))
    onsets = rhythm.repetitions["all"]
    fit = sum(onsets.at(60.0 / near * beats) for beats in (1, 2, 4, 6, 8, 12))
    return float(near[int(np.argmax(fit))])
