"""Spectrograms as a picture: each recording above what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acestep.audio.format import SAMPLE_RATE

_FFT, _HOP = 4096, 1200  # 85 ms; 40 columns a second
_ROWS = 150
_LOWEST_HZ, _HIGHEST_HZ = 50.0, 18_000.0
_RANGE_DB = 80.0
_GAP, _TEXT = 8, 14
_COLORS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)], dtype=np.float64)
"""From silence to the loudest, at equal distances."""


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """The mid signal with frequency in equal steps of pitch, highest on top.  (2, N) → (_ROWS, T, 3) uint8."""
    mid = samples.mean(axis=0)
    frames = np.lib.stride_tricks.sliding_window_view(mid, _FFT)[::_HOP]
    found = np.abs(np.fft.rfft(frames * np.hanning(_FFT), axis=1)).T / (_FFT / 4)  # a full-scale sine gives 1
    level_db = 20 * np.log10(found + 1e-9)
    wanted_hz = np.geomspace(_HIGHEST_HZ, _LOWEST_HZ, _ROWS)
    rows = level_db[np.round(wanted_hz / (SAMPLE_RATE / _FFT)).astype(int)]
    share = np.clip(1 + rows / _RANGE_DB, 0, 1) * (len(_COLORS) - 1)
    place = np.minimum(share.astype(int), len(_COLORS) - 2)
    part = (share - place)[..., None]
    return np.round(_COLORS[place] * (1 - part) + _COLORS[place + 1] * part).astype(np.uint8)


def write_comparison(file: Path, pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = 2) -> Path:
    """A PNG with a block for each (title, recording, reconstruction), both (2, N), one above the other."""
    from PIL import Image, ImageDraw

    blocks = [(title, spectrogram(one), spectrogram(other)) for title, one, other in pairs]
    width = max(picture.shape[1] for _, *pictures in blocks for picture in pictures)
    height = _TEXT + 2 * _ROWS + 2 * _GAP
    lines = -(-len(blocks) // columns)
    page = Image.new("RGB", (columns * (width + _GAP) + _GAP, lines * height + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, (title, above, below) in enumerate(blocks):
        left = _GAP + (number % columns) * (width + _GAP)
        top = number // columns * height + 2
        draw.text((left, top), title, fill="black")
        page.paste(Image.fromarray(above), (left, top + _TEXT))
        page.paste(Image.fromarray(below), (left, top + _TEXT + _ROWS + 2))
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file)
    return file
