"""Pieces of the synthesiser, rendered once by all processors and kept as 16-bit sound."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import draw_piece, render_piece
from acestep.core.paths import write_json


def _render(job: tuple[int, float, str]) -> np.ndarray:
    seed, duration_s, pool = job
    samples = render_piece(draw_piece(seed, pool=pool, duration_s=duration_s))
    return (samples * 32767).astype(np.int16)


class AudioPool:
    """`count` pieces of one length, from the seeds that follow `first_seed`; made on first use.

    The file is a plain array of int16, (count, 2, N), read through a memory map.
    """

    def __init__(
        self, file: Path, count: int, duration_s: float, first_seed: int, pool: str = "base", processes: int = 2
    ) -> None:
        self.seeds = range(first_seed, first_seed + count)
        self.duration_s, self.pool = duration_s, pool
        wanted = {"count": count, "duration_s": duration_s, "first_seed": first_seed, "pool": pool}
        marker = file.with_suffix(".json")
        if not (marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted):
            self._fill(file, processes)
            write_json(marker, wanted)
        self.samples = np.load(file, mmap_mode="r")

    def _fill(self, file: Path, processes: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (len(self.seeds), 2, round(self.duration_s * SAMPLE_RATE))
        samples = np.lib.format.open_memmap(file, "w+", np.int16, shape)
        jobs = [(seed, self.duration_s, self.pool) for seed in self.seeds]
        with ProcessPoolExecutor(processes) as workers:
            for index, rendered in enumerate(workers.map(_render, jobs, chunksize=8)):
                samples[index] = rendered
        samples.flush()

    def clips(self, count: int, length: int, random: np.random.Generator) -> np.ndarray:
        """Random excerpts, float32 (count, 2, length)."""
        total = self.samples.shape[2]
        starts = random.integers(0, total - length + 1, count)
        pieces = random.integers(0, len(self.seeds), count)
        cut = [self.samples[piece, :, start : start + length] for piece, start in zip(pieces, starts, strict=True)]
        return np.stack(cut).astype(np.float32) / 32767
