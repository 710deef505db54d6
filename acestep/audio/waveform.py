"""The outline of a song for drawing: lowest and highest sample of each of a thousand stretches."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from acestep.audio.sources import open_source
from acestep.core.errors import UserError
from acestep.core.jobs import state_folder
from acestep.core.paths import atomic_file, value_hash

MOST_REMEMBERED = 2000
"""Outlines kept on disk, a few kilobytes each."""

_VERSION = 1  # raise this when the same file gives another outline than before


def peaks(path: str | Path, bins: int = 1000, memory: Path | None = None) -> np.ndarray:
    """Lowest and highest sample of each of `bins` equal stretches of a song: float32 [2, bins], all channels as one.

    The song is decoded block by block the first time and remembered until it changes, in the folder `memory`
    (default: in the state folder). A song with fewer frames than `bins` gives as many as it has frames. Raises
    UserError when it cannot be read.
    """
    path = Path(path).expanduser().absolute()
    with contextlib.suppress(OSError):  # open_source says what is wrong with the file
        facts = path.stat()
        key = value_hash([_VERSION, str(path.resolve()), facts.st_size, facts.st_mtime_ns, bins])
        known = (memory or state_folder() / "waveforms") / f"{key}.npy"
        outline = _remembered(known, bins)
        if outline is None:
            outline = _measure(path, bins)
            _remember(known, outline)
        return outline
    return _measure(path, bins)


def _measure(path: Path, bins: int) -> np.ndarray:
    with open_source(path) as source:
        total = source.count_frames()
        if total <= 0:
            raise UserError(f"{path} holds no sound.", fix="Copy or export it again, or remove it.")
        bins = min(bins, total)
        firsts = -(-np.arange(bins, dtype=np.int64) * total // bins)  # the first frame of each bin
        outline = np.stack([np.full(bins, np.inf, np.float32), np.full(bins, -np.inf, np.float32)])
        position = 0
        for block in source.blocks():
            low, high = np.fmin(block[:, 0], block[:, -1]), np.fmax(block[:, 0], block[:, -1])  # fmin passes NaN over
            # bins this block touches; sound beyond the stated length belongs to the last one
            first = int(np.searchsorted(firsts, position, side="right")) - 1
            end = int(np.searchsorted(firsts, position + len(block)))
            starts = np.maximum(firsts[first:end] - position, 0)
            outline[0, first:end] = np.fmin(outline[0, first:end], np.fmin.reduceat(low, starts))
            outline[1, first:end] = np.fmax(outline[1, first:end], np.fmax.reduceat(high, starts))
            position += len(block)
    outline[:, ~np.isfinite(outline).all(axis=0)] = 0  # of a file that is cut off or holds NaN
    return outline


def _remembered(file: Path, bins: int) -> np.ndarray | None:
    """A remembered outline; None where there is none or it is damaged."""
    try:
        outline = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = outline.dtype == np.float32 and outline.ndim == 2 and len(outline) == 2 and 0 < outline.shape[1] <= bins
    return outline if fits else None


def _remember(file: Path, outline: np.ndarray) -> None:
    # without the memory the next drawing is slower, nothing more
    with contextlib.suppress(OSError, UserError):
        with atomic_file(file) as temporary, open(temporary, "wb") as handle:
            np.save(handle, outline, allow_pickle=False)
        remembered = sorted(file.parent.glob("*.npy"), key=lambda entry: entry.stat().st_mtime_ns)
        for oldest in remembered[: max(0, len(remembered) - MOST_REMEMBERED)]:
            oldest.unlink(missing_ok=True)
