"""What pieces say of themselves is what listening to them finds.

Of 100 pieces of 12 s the analysis finds 98 keys, 83 tempi and 86 metres; between 80 and 135 beats a minute all keys,
all tempi and 93 % of the metres. Beyond, it takes twice, half or another simple part of the tempo for the beat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soxr

from acestep.audio import rhythm
from acestep.audio.analysis import tell_key, tell_rhythm
from acestep.audio.format import SAMPLE_RATE
from acestep.audio.hearing import RATE
from acestep.audio.pitch import listen_for_pitches
from acestep.audio.synth import draw_piece, render_piece
from acestep.audio.weighing import Estimate

SEEDS = range(30)
MULTIPLES = (1 / 3, 1 / 2, 2 / 3, 1.0, 1.5, 2.0, 3.0)


def heard(samples: np.ndarray) -> tuple[float, str, str]:
    """Tempo, key and metre of sound [2, N], as the analysis of files tells them."""
    mono = soxr.resample(samples.mean(axis=0), SAMPLE_RATE, RATE)
    mono = (mono / np.abs(mono).max()).astype(np.float32)
    pitches = [listen_for_pitches(mono)]
    tempo, metre = tell_rhythm(rhythm.listen_for_rhythm((mono,), pitches))
    return likeliest(tempo), likeliest(tell_key(pitches)), likeliest(metre)


def likeliest(estimate: Estimate[Any]) -> Any:
    return estimate.runner_up if estimate.value is None else estimate.value


@pytest.fixture(scope="module")
def found() -> list[tuple[Any, float, str, str]]:
    pieces = [draw_piece(seed, duration_s=12) for seed in SEEDS]
    return [(piece, *heard(render_piece(piece))) for piece in pieces]


def test_the_key_is_heard(found: list[tuple[Any, float, str, str]]) -> None:
    assert np.mean([key == piece.keyscale for piece, _, key, _ in found]) >= 0.85


def is_usual(bpm: int) -> bool:
    """Whether a tempo is one at which beats are told from their halves and doubles."""
    return 80 <= bpm <= 135


def test_the_tempo_is_heard(found: list[tuple[Any, float, str, str]]) -> None:
    ratios = np.array([tempo / piece.bpm for piece, tempo, _, _ in found])
    middle = np.array([is_usual(piece.bpm) for piece, *_ in found])
    right = np.abs(ratios - 1) < 0.02
    assert right.mean() >= 0.65
    assert right[middle].mean() >= 0.95
    assert all(min(abs(ratio / multiple - 1) for multiple in MULTIPLES) < 0.02 for ratio in ratios)


def test_the_metre_is_heard(found: list[tuple[Any, float, str, str]]) -> None:
    right = np.array([metre == piece.metre for piece, _, _, metre in found])
    middle = np.array([is_usual(piece.bpm) for piece, *_ in found])
    assert right.mean() >= 0.75
    assert right[middle].mean() >= 0.9
