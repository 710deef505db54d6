"""Counts in words."""

from __future__ import annotations

import pytest

from acestep.core.words import counted


@pytest.mark.parametrize(
    ("number", "plural", "words"),
    [
        (0, "songs", "0 songs"),
        (1, "songs", "1 song"),
        (2, "songs", "2 songs"),
        (1, "batches", "1 batch"),
        (1, "passes", "1 pass"),
        (1, "entries", "1 entry"),
    ],
)
def test_one_is_not_many(number: int, plural: str, words: str) -> None:
    assert counted(number, plural) == words
