"""A singing voice: a glottal pulse train through four formants; each syllable a consonant and a vowel.

The voice's harmonics are summed directly, each as loud as the formants make it. Only the first tenth of a second,
where the consonant glides into the vowel, changes in time; vowels are kept and shared by all syllables.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth.timbres import NOTE_RMS, kept_length_s, vibrato_seconds
from acestep.audio.synth.tones import falling_ramp, fixed_noise, frequency_of, sine

VOWELS: dict[str, tuple[float, float, float, float]] = {
    "a": (800, 1250, 2800, 3700),
    "o": (480, 820, 2700, 3600),
    "ee": (320, 2500, 3200, 3900),
    "oo": (340, 680, 2400, 3400),
    "ay": (500, 2050, 2750, 3800),
}
"""Formants in Hz of the vowels as spelled."""

CONSONANTS: dict[str, tuple[tuple[float, float, float, float], float]] = {
    "l": ((360, 1100, 2600, 3500), 0.35),
    "n": ((280, 1500, 2300, 3300), 0.2),
    "d": ((300, 1700, 2700, 3600), 0.0),
}
"""Formants a consonant starts from, and its level compared with the vowel's."""

SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)

RELEASE_S = 0.05
_WIDTHS_HZ = (90.0, 110.0, 170.0, 250.0)
_FORMANT_LEVELS = (1.0, 0.7, 0.45, 0.3)
_CONSONANT_S, _GLIDE_S = 0.06, 0.06  # the consonant itself, then the way to the vowel
_HEAD = round((_CONSONANT_S + _GLIDE_S) * SAMPLE_RATE)
_HIGHEST_HZ = 6000.0
_VIBRATO = 0.006
_BLOCK = 240  # samples over which the formants of the head are held still


def sung_note(syllable: str, midi_note: int, frames: int) -> np.ndarray:
    """One sung note, float32 [frames], about as loud as `timbres.note`; the caller may write to it."""
    consonant, vowel = syllable[:1], syllable[1:]
    sound = _vowel(vowel, midi_note, kept_length_s(frames))[:frames].copy()
    head = min(frames, _HEAD)
    sound[:head] = _head(consonant, vowel, midi_note)[:head]
    release = min(frames, round(RELEASE_S * SAMPLE_RATE))
    sound[frames - release :] *= falling_ramp(release)
    return sound


def _phase(midi_note: int, frames: int) -> np.ndarray:
    """Cycles of the pulse train since the onset."""
    time_s = np.arange(frames) / SAMPLE_RATE
    return np.asarray(frequency_of(midi_note) * (time_s + vibrato_seconds(time_s, _VIBRATO)))


def _harmonic_levels(formants_hz: np.ndarray, pitch_hz: float) -> np.ndarray:
    """Levels [..., harmonics] of the harmonics for formants [..., 4]."""
    count = int(_HIGHEST_HZ / pitch_hz)
    number = np.arange(1, count + 1)
    frequency_hz = number * pitch_hz
    away = (frequency_hz - formants_hz[..., None]) / np.array(_WIDTHS_HZ)[:, None]
    gain = (np.array(_FORMANT_LEVELS)[:, None] / (1 + away**2)).sum(axis=-2) + 0.02
    return np.asarray(gain * number**-0.7)


@lru_cache(maxsize=240)
def _vowel(vowel: str, midi_note: int, length_s: float) -> np.ndarray:
    """A vowel without beginning and end, float32 [length_s * 48000]."""
    cycles = _phase(midi_note, round(length_s * SAMPLE_RATE))
    levels = _harmonic_levels(np.array(VOWELS[vowel], dtype=np.float64), frequency_of(midi_note))
    sound = np.zeros(len(cycles), dtype=np.float32)
    for number, level in enumerate(levels, start=1):
        sound += np.float32(level) * sine(number * cycles)
    sound *= np.float32(_gain(vowel, midi_note))
    sound.setflags(write=False)
    return sound


@lru_cache(maxsize=600)
def _head(consonant: str, vowel: str, midi_note: int) -> np.ndarray:
    """The first part of a syllable: consonant and glide, float32 [_HEAD]."""
    start_hz, level = CONSONANTS[consonant]
    time_s = np.arange(0, _HEAD, _BLOCK) / SAMPLE_RATE
    share = np.clip((time_s - _CONSONANT_S) / _GLIDE_S, 0, 1)[:, None]
    formants_hz = (1 - share) * np.array(start_hz) + share * np.array(VOWELS[vowel])
    strength = level + (1 - level) * share if level else np.clip((time_s[:, None] - 0.03) / 0.02, 0, 1)
    blocks = _harmonic_levels(formants_hz, frequency_of(midi_note)) * strength  # [blocks, harmonics]
    places = np.arange(_HEAD) / _BLOCK
    cycles = _phase(midi_note, _HEAD)
    sound = np.zeros(_HEAD)
    for number in range(blocks.shape[1]):
        levels = np.interp(places, np.arange(len(blocks)), blocks[:, number])
        sound += levels * np.sin(2 * pi * (number + 1) * cycles)
    sound *= _gain(vowel, midi_note)
    if consonant == "d":
        burst = fixed_noise(4, round(0.02 * SAMPLE_RATE), 1500, 5000)
        start = round(0.02 * SAMPLE_RATE)
        sound[start : start + len(burst)] += 0.35 * burst * falling_ramp(len(burst))
    attack = round(0.01 * SAMPLE_RATE)
    sound[:attack] *= np.linspace(0, 1, attack)
    sound = sound.astype(np.float32)
    sound.setflags(write=False)
    return sound


def _gain(vowel: str, midi_note: int) -> float:
    """What brings the vowel's root mean square to that of other notes."""
    levels = _harmonic_levels(np.array(VOWELS[vowel], dtype=np.float64), frequency_of(midi_note))
    return NOTE_RMS / float(np.sqrt((levels**2).sum() / 2))
