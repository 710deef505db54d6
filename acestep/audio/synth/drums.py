"""Drum kits: three fixed sounds each (low, middle, high), made once and the same every time."""

from __future__ import annotations

from functools import cache

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth.tones import fixed_noise

BASE_KITS = ("acoustic", "electronic", "brush", "hand")
HELD_OUT_KITS = ("shaker", "chip")
KITS = BASE_KITS + HELD_OUT_KITS


def _times(length_s: float) -> np.ndarray:
    return np.arange(round(length_s * SAMPLE_RATE)) / SAMPLE_RATE


def _struck(sound: np.ndarray, decay_s: float, attack_s: float = 0.001) -> np.ndarray:
    """With an onset, a decay and a silent end; largest sample 1."""
    time_s = np.arange(len(sound)) / SAMPLE_RATE
    shaped = sound * np.exp(-time_s / decay_s) * np.minimum(1, time_s / attack_s)
    shaped *= np.clip((time_s[-1] - time_s) / 0.005, 0, 1)
    return np.asarray(shaped / np.abs(shaped).max(), dtype=np.float32)


def _thump(length_s: float, from_hz: float, to_hz: float, fall_s: float, decay_s: float) -> np.ndarray:
    """A sine that falls in pitch."""
    pitch_hz = to_hz + (from_hz - to_hz) * np.exp(-_times(length_s) / fall_s)
    return _struck(np.sin(2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE), decay_s)


def _noise(
    seed: int, length_s: float, low_hz: float, high_hz: float, decay_s: float, attack_s: float = 0.001
) -> np.ndarray:
    return _struck(fixed_noise(seed, round(length_s * SAMPLE_RATE), low_hz, high_hz), decay_s, attack_s)


def _metal(length_s: float, decay_s: float, *frequencies_hz: float) -> np.ndarray:
    """Sines without a common pitch."""
    time_s = _times(length_s)
    return _struck(np.asarray(sum(np.sin(2 * np.pi * hz * time_s) for hz in frequencies_hz)), decay_s)


def _tone(length_s: float, hz: float, decay_s: float) -> np.ndarray:
    return _metal(length_s, decay_s, hz)


def _mixed(*parts: tuple[float, np.ndarray]) -> np.ndarray:
    """Sounds of different lengths at their levels; largest sample 1."""
    total = np.zeros(max(len(sound) for _, sound in parts), dtype=np.float32)
    for level, sound in parts:
        total[: len(sound)] += np.float32(level) * sound
    return total / np.abs(total).max()


def _held_noise(seed: int, length_s: float, hold: int, decay_s: float) -> np.ndarray:
    """Coarse noise as of an old game console: each random value is held for some samples."""
    frames = round(length_s * SAMPLE_RATE)
    values = np.sign(np.random.RandomState(seed).standard_normal(frames // hold + 1))
    spectrum = np.fft.rfft(np.repeat(values, hold)[:frames])
    spectrum *= 1 / (1 + (np.fft.rfftfreq(frames, 1 / SAMPLE_RATE) / 9000.0) ** 8)
    return _struck(np.fft.irfft(spectrum, frames), decay_s)


@cache
def kit_sounds(kit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, middle and high hit of a kit, float32 [frames], largest sample 1. Shared: not to be written to."""
    sounds = _make(kit)
    for sound in sounds:
        sound.setflags(write=False)
    return sounds


def _make(kit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    match kit:
        case "acoustic":
            kick = _mixed((1, _thump(0.28, 150, 52, 0.02, 0.09)), (0.25, _noise(1, 0.02, 1000, 5000, 0.004)))
            snare = _mixed((0.6, _tone(0.15, 190, 0.05)), (1, _noise(2, 0.22, 700, 8000, 0.07)))
            return kick, snare, _noise(3, 0.09, 6000, 10500, 0.025)
        case "electronic":
            kick = _thump(0.42, 220, 45, 0.035, 0.16)
            claps = np.zeros(round(0.2 * SAMPLE_RATE), dtype=np.float32)
            for place_s in (0.0, 0.011, 0.022):
                hit = _noise(5, 0.17, 1000, 3500, 0.05 if place_s > 0.02 else 0.006)
                start = round(place_s * SAMPLE_RATE)
                claps[start : start + len(hit)] += hit
            return kick, claps / np.abs(claps).max(), _metal(0.05, 0.015, 5100, 6350, 7700, 8900, 9800)
        case "brush":
            return (
                _thump(0.3, 85, 60, 0.03, 0.1),
                _noise(6, 0.25, 1500, 5000, 0.08, attack_s=0.03),
                _noise(7, 0.06, 3500, 7500, 0.018),
            )
        case "hand":
            slap = _mixed((1, _tone(0.16, 330, 0.04)), (0.6, _noise(8, 0.05, 1500, 5000, 0.012)))
            return _thump(0.3, 125, 92, 0.05, 0.1), slap, _metal(0.14, 0.045, 4300, 5650, 7150, 8300, 9100)
        case "shaker":
            block = _mixed((1, _tone(0.1, 880, 0.025)), (0.4, _tone(0.06, 2200, 0.01)))
            return block, _metal(0.3, 0.1, 3950, 6700), _noise(9, 0.1, 5500, 11000, 0.03, attack_s=0.025)
        case "chip":
            return _thump(0.14, 700, 60, 0.02, 0.05), _held_noise(10, 0.14, 8, 0.045), _held_noise(11, 0.04, 3, 0.012)
    raise ValueError(f"no drum kit is called {kit!r}; there are {', '.join(KITS)}")
