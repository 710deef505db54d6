"""Oscillators and envelopes: float32 [frames] at 48 kHz."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from acestep.audio.format import SAMPLE_RATE

_TABLE_SIZE = 2048


@lru_cache(maxsize=16)
def _wave_table(harmonics: tuple[float, ...]) -> np.ndarray:
    """One period of a sum of sines with these amplitudes, and its first sample again for interpolation."""
    phase = np.arange(_TABLE_SIZE + 1) * (2 * np.pi / _TABLE_SIZE)
    table = sum(level * np.sin(number * phase) for number, level in enumerate(harmonics, start=1))
    return np.asarray(table / sum(harmonics), dtype=np.float32)


def oscillator(frequency_hz: float, frames: int, harmonics: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """A tone with the given levels of its harmonics; those above half the sample rate are left out."""
    audible = harmonics[: max(1, int(SAMPLE_RATE / 2 / frequency_hz))]
    table = _wave_table(audible)
    position = np.arange(frames) * (frequency_hz / SAMPLE_RATE) % 1.0 * _TABLE_SIZE
    index = position.astype(np.int64)
    share = (position - index).astype(np.float32)
    return table[index] * (1 - share) + table[index + 1] * share


def held_envelope(frames: int, attack_s: float, release_s: float) -> np.ndarray:
    """Rises, stays, falls to zero at its end."""
    time_s = np.arange(frames, dtype=np.float32) / SAMPLE_RATE
    return np.clip(np.minimum(time_s / attack_s, (time_s[-1] - time_s) / release_s), 0, 1)


def struck_envelope(frames: int, decay_s: float, attack_s: float = 0.003) -> np.ndarray:
    """Rises at once and dies away; silent at its end even when cut short."""
    time_s = np.arange(frames, dtype=np.float32) / SAMPLE_RATE
    return np.exp(-time_s / decay_s) * held_envelope(frames, attack_s, 0.01)


def frequency_of(midi_note: float) -> float:
    """Hertz of a MIDI note number; 69 is the A of 440 Hz."""
    return 440.0 * 2 ** ((midi_note - 69) / 12)


def sine(cycles: np.ndarray) -> np.ndarray:
    """The sine of a phase in cycles, float32; whole cycles are taken off first, as float32 counts few digits."""
    return np.sin(((cycles - np.floor(cycles)) * (2 * np.pi)).astype(np.float32))


@lru_cache(maxsize=64)
def falling_ramp(frames: int) -> np.ndarray:
    """From just below 1 to 0, for the release of a note. Shared: not to be written to."""
    ramp = np.linspace(1, 0, frames + 1, dtype=np.float32)[1:]
    ramp.setflags(write=False)
    return ramp


def fixed_noise(seed: int, frames: int, low_hz: float, high_hz: float) -> np.ndarray:
    """The same noise every time, between two frequencies, largest sample 1."""
    # RandomState's numbers are promised never to change, those of default_rng are not
    spectrum = np.fft.rfft(np.random.RandomState(seed).standard_normal(frames))
    frequency_hz = np.fft.rfftfreq(frames, 1 / SAMPLE_RATE)
    edges = np.maximum(frequency_hz, 1.0)
    spectrum *= 1 / (1 + (low_hz / edges) ** 8) / (1 + (edges / high_hz) ** 8)
    noise = np.fft.irfft(spectrum, frames)
    return np.asarray(noise / np.abs(noise).max(), dtype=np.float32)
