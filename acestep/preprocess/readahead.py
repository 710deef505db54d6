"""Decodes the next song on a thread while the present one is encoded."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.core.ahead import Ahead
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


class ReadAhead(Ahead["Song", ReadySong]):
    """The audio of songs in their order. Two are in memory at most: the one taken and the one being decoded."""

    def __init__(self, songs: Iterable[Song], max_duration_s: float, normalization: Normalization) -> None:
        self._max_duration_s = max_duration_s
        self._normalization = normalization
        super().__init__(songs, self._read)

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
