"""Counts in words."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

import acestep
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


NOUNS = "songs|files|windows|steps|modules|layers|previews|blocks|judgements|devices|frames|captions|checkpoints"
MANY = {  # counts that are never 1 where they are said
    "settings.devices": "more than one device was asked for",
    "count": "more than one device was asked for",
    "size": "half of at least two windows, said together with these",
    "windows": "a pass that can be halved",
    "session.state.bad_steps": "a single one is no trouble",
    "layers": "the layers of a whole model",
}


@pytest.mark.parametrize("room", ["preprocess", "training", "model"])
def test_no_text_says_1_songs(room: str) -> None:
    """A count followed by a plural goes through `counted`."""
    wrong = []
    for path in (Path(acestep.__file__).parent / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for count, text in itertools.pairwise(parts):
                if not isinstance(count, ast.FormattedValue) or not isinstance(text, ast.Constant):
                    continue
                said = ast.unparse(count.value)
                if re.match(rf" (\w\w+ )?({NOUNS})\b", str(text.value)) and not said.isupper() and said not in MANY:
                    wrong.append(f"{path.name}:{node.lineno}: {said}{text.value}")
    assert not wrong
