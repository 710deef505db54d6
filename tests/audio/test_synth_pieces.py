"""Pieces: the same each time, what their labels say, and within bounds whatever the seed."""

from __future__ import annotations

import numpy as np
import pytest

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import INSTRUMENTAL_LYRICS, draw_piece, render_piece
from acestep.model.facts import INSTRUMENTAL


def test_instrumental_lyrics_are_those_of_the_model() -> None:
    assert INSTRUMENTAL_LYRICS == INSTRUMENTAL


@pytest.mark.parametrize("pool", ["base", "held_out"])
def test_a_seed_always_gives_the_same_piece(pool: str) -> None:
    first, again = draw_piece(3, pool=pool, duration_s=5), draw_piece(3, pool=pool, duration_s=5)
    assert first == again
    assert (first.caption, first.lyrics) == (again.caption, again.lyrics)
    samples = render_piece(first)
    assert samples.shape == (2, 5 * SAMPLE_RATE)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, render_piece(again))
