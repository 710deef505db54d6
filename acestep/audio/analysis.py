"""Tempo, key, metre, length and loudness of a sound file, without a model: measured, then weighed.

hearing.py   reads the file once         pitch.py   which notes sound when
rhythm.py    candidates for beat and bar key.py     what speaks for each key
weighing.py  which is likeliest, and how sure
"""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acestep.audio import key, rhythm
from acestep.audio.hearing import RATE, hear
from acestep.audio.pitch import Pitches, listen_for_pitches
from acestep.audio.weighing import Estimate, decide, probabilities, weights

SHORTEST_S = 2.0
"""Shorter sound holds too little to tell tempo, key or metre."""

_NOTHING: Estimate[Any] = Estimate(None, 0.0, None)


@dataclass(frozen=True)
class Analysis:
    """What was found. Tempo in beats a minute (in 6/8 dotted quarters), key and metre as labels spell them.

    `loudness_lufs` is None for silence and for sound too short or too quiet to have one.
    """

    duration_s: float
    loudness_lufs: float | None
    bpm: Estimate[float]
    keyscale: Estimate[str]
    timesignature: Estimate[str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        estimates = {name: getattr(self, name) for name in ("bpm", "keyscale", "timesignature")}
        return {
            "duration_s": round(self.duration_s, 3),
            "loudness_lufs": None if self.loudness_lufs is None else round(self.loudness_lufs, 2),
            **{
                name: {
                    "value": found.value,
                    "confidence": round(found.confidence, 3),
                    "runner_up": found.runner_up,
                }
                for name, found in estimates.items()
            },
            "notes": list(self.notes),
        }


def prepare() -> None:
    """Load the libraries; call it once before analysing in several threads, which would wait for one another."""
    for name in ("librosa.core", "librosa.feature", "pyloudnorm.iirfilter", "scipy.ndimage", "scipy.signal"):
        importlib.import_module(name)


def threads_at_once() -> int:
    """How many songs to analyse at once; each holds two minutes of sound and its spectra, about 0.3 GB."""
    return min(4, os.cpu_count() or 1)


def analyze(path: str | Path) -> Analysis:
    """Analyse a sound file; of a long one a few excerpts. Raises UserError for what cannot be read as sound."""
    heard = hear(path)
    loudness = heard.loudness_lufs if math.isfinite(heard.loudness_lufs) else None
    excerpts = tuple(part for part in heard.excerpts if len(part) >= SHORTEST_S * RATE)
    if not excerpts:
        return Analysis(heard.duration_s, loudness, _NOTHING, _NOTHING, _NOTHING, heard.notes)
    pitches = [listen_for_pitches(part) for part in excerpts]
    tempo, metre = tell_rhythm(rhythm.listen_for_rhythm(excerpts, pitches))
    return Analysis(heard.duration_s, loudness, tempo, tell_key(pitches), metre, heard.notes)


def tell_rhythm(found: rhythm.Rhythm) -> tuple[Estimate[float], Estimate[str]]:
    """Tempo and metre, weighed together: a bar is only as good as its beat."""
    tempi = rhythm.candidates(found)
    if not len(tempi):
        return _NOTHING, _NOTHING
    chances = probabilities(rhythm.features(found, tempi) @ weights("rhythm"))
    tempo = decide([round(float(value), 1) for value in tempi], chances.sum(axis=1))
    return tempo, decide(list(rhythm.METRES), chances.sum(axis=0))


def tell_key(pitches: list[Pitches]) -> Estimate[str]:
    """The key of pitches over time."""
    features = key.features(pitches)
    scores = np.einsum("mtf,fm->mt", features, weights("key"))
    names = [f"{name} {mode}" for mode in key.MODES for name in key.NAMES[mode]]
    return decide(names, probabilities(scores).ravel())
