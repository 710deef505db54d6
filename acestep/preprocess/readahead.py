"""Decodes the next song on a thread while the present one is encoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from acestep.settings.preprocess import Normalization

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ReadySong:
    """Audio to encode: samples (2, N) at 48 kHz, what the decoder noticed, and the seconds it took."""

    samples: np.ndarray
    warnings: tuple[str, ...]
    seconds: float


class ReadAhead:
    """Audio files in their order. Two songs are in memory at most: the one taken and the one being decoded."""

    def __init__(self, paths: Iterable[Path], max_duration_s: float, normalization: Normalization) -> None:
        self._waiting = deque(paths)
        self._max_duration_s = max_duration_s
        self._normalization = normalization
        self._pool = ThreadPoolExecutor(1, "decode")
        self._next: tuple[Path, Future[ReadySong]] | None = None

    def __enter__(self) -> Self:
        self._start_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, path: Path) -> ReadySong:
        """The audio of `path`, which must be the next in order; raises what decoding raised (UserError)."""
        assert self._next is not None and self._next[0] == path, "songs are taken in the order they were announced"
        future = self._next[1]
        self._next = None
        try:
            return future.result()
        finally:
            self._start_next()

    def _start_next(self) -> None:
        if self._waiting:
            path = self._waiting.popleft()
            self._next = path, self._pool.submit(self._read, path)

    def _read(self, path: Path) -> ReadySong:
        from acestep.audio.decode import decode
        from acestep.audio.loudness import normalize

        started = time.perf_counter()
        audio = decode(path, self._max_duration_s)
        samples = normalize(audio.samples, self._normalization)
        return ReadySong(samples, audio.warnings, time.perf_counter() - started)
