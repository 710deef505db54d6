"""Decodes the next song on a thread while the present one is encoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from acestep.core.errors import UserError
from acestep.core.paths import content_hash
from acestep.settings.preprocess import Normalization

if TYPE_CHECKING:
    import numpy as np

    from acestep.dataset.song import Song


@dataclass(frozen=True)
class ReadySong:
    """Audio to encode: samples (2, N) at 48 kHz, what the decoder noticed, and the seconds it took."""

    samples: np.ndarray
    warnings: tuple[str, ...]
    seconds: float


class ReadAhead:
    """The audio of songs in their order. Two are in memory at most: the one taken and the one being decoded."""

    def __init__(self, songs: Iterable[Song], max_duration_s: float, normalization: Normalization) -> None:
        self._waiting = deque(songs)
        self._max_duration_s = max_duration_s
        self._normalization = normalization
        self._pool = ThreadPoolExecutor(1, "decode")
        self._next: tuple[Song, Future[ReadySong]] | None = None

    def __enter__(self) -> Self:
        self._start_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, song: Song) -> ReadySong:
        """The audio of `song`, which must be the next in order; raises what decoding raised (UserError)."""
        assert self._next is not None and self._next[0] is song, "songs are taken in the order they were announced"
        future = self._next[1]
        self._next = None
        try:
            return future.result()
        finally:
            self._start_next()

    def _start_next(self) -> None:
        if self._waiting:
            song = self._waiting.popleft()
            self._next = song, self._pool.submit(self._read, song)

    def _read(self, song: Song) -> ReadySong:
        from acestep.audio.decode import decode
        from acestep.audio.loudness import normalize

        started = time.perf_counter()
        _require_unchanged(song)
        audio = decode(song.path, self._max_duration_s)
        samples = normalize(audio.samples, self._normalization)
        return ReadySong(samples, audio.warnings, time.perf_counter() - started)


def _require_unchanged(song: Song) -> None:
    # Tensors are kept under the hash of the audio, so audio that was replaced meanwhile must not get that name.
    try:
        unchanged = content_hash(song.path).startswith(song.id)
    except OSError as error:
        raise UserError(f"{song.path} cannot be read ({error.strerror}).", fix="Check the file.") from error
    if not unchanged:
        raise UserError(f"{song.path} has changed since the songs were scanned.", fix="Run preprocess again.")
