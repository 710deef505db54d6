"""Which notes sound when: peaks of the spectrum gathered by pitch, after finding how the music is tuned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acestep.audio.hearing import RATE

_WINDOW, _HOP = 8192, 1024
_LOWEST, _HIGHEST, _BASS_BELOW = 33, 96, 53  # MIDI numbers; bass is what lies below F3
_LOWEST_BIN = 16
"""43 Hz; what lies below is rumble."""

_FLOOR = 0.02
"""Peaks below this share of the loudest in their frame are not counted."""


@dataclass(frozen=True)
class Pitches:
    """Strength of the 12 pitch classes (C first) over time: `chroma` of all notes, `bass` of low ones, [12, frames]."""

    chroma: np.ndarray
    bass: np.ndarray
    rate: float = RATE / _HOP


def listen_for_pitches(samples: np.ndarray) -> Pitches:
    """Pitch classes of mono sound at RATE. Frames hold more where they are louder, evened out by a square root."""
    import librosa

    spectrum = np.abs(librosa.stft(samples, n_fft=_WINDOW, hop_length=_HOP))
    frames = spectrum.shape[1]
    inner = spectrum[1:-1]
    loudest = spectrum[_LOWEST_BIN:].max(axis=0)  # a constant offset is no note
    peaks = (inner > spectrum[:-2]) & (inner >= spectrum[2:]) & (inner > _FLOOR * loudest) & (inner > 1e-6)
    places, times = np.nonzero(peaks)
    places += 1
    before, at, after = (np.log(spectrum[places + shift, times] + 1e-12) for shift in (-1, 0, 1))
    # the top of the parabola through three points of the logarithmic spectrum
    offset = 0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-9)
    frequency = np.maximum((places + np.clip(offset, -0.5, 0.5)) * RATE / _WINDOW, 1.0)
    midi = 69 + 12 * np.log2(frequency / 440.0)
    strength = np.sqrt(np.exp(at))
    kept = (midi >= _LOWEST) & (midi < _HIGHEST)
    midi, strength, times = midi[kept], strength[kept], times[kept]
    # deviations from equal temperament point the same way on a circle of one semitone
    tuning = np.angle(np.sum(strength * np.exp(2j * np.pi * midi))) / (2 * np.pi) if len(midi) else 0.0
    note = np.round(midi - tuning).astype(int)
    chroma, bass = np.zeros((12, frames)), np.zeros((12, frames))
    np.add.at(chroma, (note % 12, times), strength)
    low = note < _BASS_BELOW
    np.add.at(bass, (note[low] % 12, times[low]), strength[low])
    return Pitches(chroma, bass)
