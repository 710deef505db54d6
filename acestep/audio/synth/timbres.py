"""Pitched instruments: a note is a fixed function of instrument, pitch and length, its phase zero at the onset.

A timbre is a list of partials, each with its own decay. The longest note of a pitch is made once and kept; shorter
ones are cut from it and released.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, log2, pi

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth.tones import falling_ramp, frequency_of, sine

HIGHEST_HZ = 10_000.0
"""Partials above are left out, so that little has to be coded there."""

NOTE_RMS = 0.2
"""Root mean square of the first part of every note, so that timbres are about equally loud."""

_LOUDNESS_S = 0.3
_SHORTEST_ATTACK_S = 0.003


Partials = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Timbre:
    """Partials as (frequency ratio, level, seconds to 1/e), and how notes begin and end.

    `swell_s` is how much later each further partial reaches its level. `resonances` are (Hz, width in Hz, gain)
    and stay where they are whatever the pitch.
    """

    partials: Partials
    attack_s: float = 0.005
    release_s: float = 0.03
    swell_s: float = 0.0
    vibrato: float = 0.0
    resonances: tuple[tuple[float, float, float], ...] = ()


def _harmonics(count: int, slope: float, step: int = 1, decay_s: float = inf, damping: float = 0.0) -> Partials:
    """Multiples of the pitch at level 1 / number ** slope; higher ones die away faster by `damping`."""
    return tuple(
        (float(number), number**-slope, decay_s / (1 + damping * (number - 1))) for number in range(1, count + 1, step)
    )


def _pulse(share: float, count: int) -> Partials:
    """A wave that is up for this share of its period."""
    return tuple((float(number), float(np.sin(pi * number * share)) / number, inf) for number in range(1, count + 1))


BASE_TIMBRES: dict[str, Timbre] = {
    "reed": Timbre(_harmonics(13, 0.9, step=2), attack_s=0.02),
    "bell": Timbre(((1, 1, 0.9), (2.0, 0.35, 0.6), (2.76, 0.6, 0.5), (5.4, 0.4, 0.25), (8.9, 0.25, 0.12))),
    "organ": Timbre(((0.5, 0.5, inf), (1, 1, inf), (2, 0.9, inf), (4, 0.7, inf), (8, 0.45, inf))),
    "saw": Timbre(_harmonics(24, 0.75), attack_s=0.008),
    "pluck": Timbre(_harmonics(16, 0.8, decay_s=0.55, damping=0.45)),
    "flute": Timbre(((1, 1, inf), (2, 0.16, inf), (3, 0.05, inf)), attack_s=0.07, release_s=0.06, vibrato=0.005),
    "brass": Timbre(_harmonics(16, 0.9), 0.03, 0.04, swell_s=0.012, resonances=((1300, 500, 3.0), (2600, 600, 1.5))),
    "piano": Timbre(((1, 1, 0.9), (2, 0.35, 0.6), (3, 0.1, 0.4), (4, 0.12, 0.3), (11.0, 0.35, 0.06))),
    "strings": Timbre(_harmonics(18, 1.1), 0.14, 0.1, vibrato=0.004, resonances=((500, 150, 1.5), (3200, 900, 2.5))),
}
"""Timbres of leads and chords."""

HELD_OUT_TIMBRES: dict[str, Timbre] = {
    "musicbox": Timbre(((1, 1, 0.5), (2.0, 0.08, 0.3), (3.0, 0.5, 0.2), (6.3, 0.3, 0.07)), attack_s=0.002),
    "marimba": Timbre(((1, 1, 0.22), (3.93, 0.45, 0.07), (9.2, 0.2, 0.025)), attack_s=0.002),
    "pulse": Timbre(_pulse(0.125, 30), attack_s=0.002, release_s=0.008),
}
"""Timbres that only the held-out styles use."""

TIMBRES = BASE_TIMBRES | HELD_OUT_TIMBRES

BASS_TIMBRES: dict[str, Timbre] = {
    "round": Timbre(((1, 1, 0.9), (2, 0.4, 0.7), (3, 0.15, 0.5)), attack_s=0.008),
    "picked": Timbre(_harmonics(14, 0.7, decay_s=0.7, damping=0.25)),
    "synth": Timbre(_harmonics(12, 0.9), attack_s=0.005),
    "triangle": Timbre(tuple((float(n), (-1) ** (n // 2) / n**2, inf) for n in range(1, 14, 2)), attack_s=0.003),
}
"""Timbres of the bass; `triangle` is held out."""


def note(timbre: Timbre, midi_note: int, frames: int) -> np.ndarray:
    """One note, float32 [frames]; the caller may write to it."""
    sound = _longest(timbre, midi_note, kept_length_s(frames))[:frames].copy()
    release = min(frames, round(timbre.release_s * SAMPLE_RATE))
    sound[frames - release :] *= falling_ramp(release)
    return sound


def kept_length_s(frames: int) -> float:
    """The shortest length of kept notes that is long enough: 1, 2, 4, 8... seconds."""
    return 2.0 ** max(0, ceil(log2(frames / SAMPLE_RATE)))


@lru_cache(maxsize=800)
def _longest(timbre: Timbre, midi_note: int, length_s: float) -> np.ndarray:
    """A note that is not released yet, float32 [length_s * 48000]."""
    time_s = np.arange(round(length_s * SAMPLE_RATE)) / SAMPLE_RATE
    pitch_hz = frequency_of(midi_note)
    cycles = pitch_hz * time_s
    if timbre.vibrato:
        cycles = cycles + pitch_hz * vibrato_seconds(time_s, timbre.vibrato)
    sound = np.zeros(len(time_s), dtype=np.float32)
    short_time_s = time_s.astype(np.float32)
    for number, (ratio, level, decay_s) in enumerate(timbre.partials):
        frequency_hz = ratio * pitch_hz
        if frequency_hz > HIGHEST_HZ:
            continue
        level = level * _resonance(timbre, frequency_hz)
        attack_s = max(_SHORTEST_ATTACK_S, timbre.attack_s + number * timbre.swell_s)
        partial = sine(ratio * cycles)
        if decay_s != inf:
            partial *= np.exp(short_time_s * np.float32(-1 / decay_s))
        attack = min(len(partial), round(attack_s * SAMPLE_RATE))
        partial[:attack] *= np.linspace(0, 1, attack, dtype=np.float32)
        sound += np.float32(level) * partial
    sound *= np.float32(NOTE_RMS / _loudness(sound))
    sound.setflags(write=False)
    return sound


def vibrato_seconds(time_s: np.ndarray, depth: float, rate_hz: float = 5.5) -> np.ndarray:
    """How far vibrato of a relative depth leads the steady tone, in seconds; it sets in during the first 0.4 s."""
    growing = np.clip((time_s - 0.1) / 0.3, 0, 1)
    return depth * growing * np.sin(2 * pi * rate_hz * (time_s - 0.1)) / (2 * pi * rate_hz)


def _resonance(timbre: Timbre, frequency_hz: float) -> float:
    return 1.0 + sum(
        gain / (1 + ((frequency_hz - centre_hz) / width_hz) ** 2) for centre_hz, width_hz, gain in timbre.resonances
    )


def _loudness(sound: np.ndarray) -> float:
    """Root mean square of the first part; the same for all lengths kept."""
    part = sound[: round(_LOUDNESS_S * SAMPLE_RATE)].astype(np.float64)
    return float(np.sqrt(np.mean(part**2)))
