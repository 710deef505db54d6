"""Pieces of the synthesiser, rendered by all processors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import Piece, draw_piece, render_piece
from acestep.core.paths import write_json

_BLOCK = 128
"""Pieces that are rendered ahead of their use: about 250 MB of sound."""


@dataclass(frozen=True)
class Pieces:
    """`count` pieces of one length, from the seeds that follow `first_seed`."""

    count: int
    duration_s: float
    first_seed: int
    pool: str = "base"

    def drawn(self) -> list[Piece]:
        return [self._draw(index) for index in range(self.count)]

    def rendered(self, processes: int | None = None) -> Iterator[np.ndarray]:
        """Their sound in order, int16 (2, N) each."""
        with ProcessPoolExecutor(processes or os.cpu_count()) as workers:
            coming: Iterator[np.ndarray] = iter(())
            for start in range(0, self.count, _BLOCK):
                present = coming
                coming = workers.map(self._render, range(self.count)[start : start + _BLOCK], chunksize=4)
                yield from present
            yield from coming

    def _draw(self, index: int) -> Piece:
        return draw_piece(self.first_seed + index, pool=self.pool, duration_s=self.duration_s)

    def _render(self, index: int) -> np.ndarray:
        return (render_piece(self._draw(index)) * 32767).astype(np.int16)


class AudioPool:
    """The sound of pieces in a file, made on first use: a plain array of int16, (count, 2, N), read by a memory map."""

    def __init__(self, file: Path, pieces: Pieces, processes: int | None = None) -> None:
        marker = file.with_suffix(".json")
        wanted = vars(pieces)
        if not (marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted):
            _fill(file, pieces, processes)
            write_json(marker, wanted)
        self.samples = np.load(file, mmap_mode="r")

    def clips(self, count: int, length: int, random: np.random.Generator) -> np.ndarray:
        """Random excerpts, int16 (count, 2, length)."""
        pieces, _, total = self.samples.shape
        starts = random.integers(0, total - length + 1, count)
        chosen = random.integers(0, pieces, count)
        return np.stack([self.samples[piece, :, at : at + length] for piece, at in zip(chosen, starts, strict=True)])


def _fill(file: Path, pieces: Pieces, processes: int | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (pieces.count, 2, round(pieces.duration_s * SAMPLE_RATE))
    samples = np.lib.format.open_memmap(file, "w+", np.int16, shape)
    for index, sound in enumerate(pieces.rendered(processes)):
        samples[index] = sound
    samples.flush()
