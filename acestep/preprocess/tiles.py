"""How a song is cut into windows of one length: for training on tiles, and for lyrics by window."""

from __future__ import annotations

from dataclasses import dataclass

TILE_LENGTHS = 32
"""Lengths of tiles are rounded up to such a part of the longest, so that tiles of different songs share batches."""


@dataclass(frozen=True)
class Piece:
    """What one sample takes of a song: `length` frames from `start`, or from anywhere where that is None."""

    start: int | None
    length: int


def tiles(frames: int, longest: int) -> tuple[Piece, ...]:
    """The fewest windows of one length up to `longest` that cover `frames` frames, spread evenly from end to end.

    Neighbours overlap by less than a sixteenth of `longest`, so every part counts practically once.
    """
    count = -(-frames // longest)
    if count == 1:
        return (Piece(0, frames),)
    grain = max(1, longest // TILE_LENGTHS)
    length = min(longest, -(-frames // (count * grain)) * grain)
    return tuple(Piece(number * (frames - length) // (count - 1), length) for number in range(count))
