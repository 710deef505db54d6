"""Counts in words."""

from __future__ import annotations

_ENDINGS = (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("s", ""))


def counted(number: int, plural: str) -> str:
    """A number with its noun, which is given in the plural: counted(1, "songs") is "1 song"."""
    return f"{number} {noun_for(number, plural)}"


def noun_for(number: int, plural: str) -> str:
    """A regular noun, given in the plural, as it stands after a number."""
    if number == 1:
        for ending, single in _ENDINGS:
            if plural.endswith(ending):
                return plural.removesuffix(ending) + single
    return plural
