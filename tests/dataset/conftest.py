"""Tiny songs that differ in content, and a memory of fingerprints of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import soundfile

MakeSong = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "state of this test"))
    yield


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """An empty folder for songs."""
    folder = tmp_path / "music"
    folder.mkdir()
    return folder


@pytest.fixture
def make_song(music: Path) -> MakeSong:
    """make_song("sub/name.wav", seconds=1.2, seed=None): a quiet noise in 8 kHz mono, another for every name."""

    def make(name: str, seconds: float = 1.1, seed: int | None = None) -> Path:
        path = music / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(crc32(name.encode()) if seed is None else seed)
        soundfile.write(path, draw.uniform(-0.1, 0.1, int(seconds * 8000)), 8000)
        return path

    return make


@pytest.fixture
def beside(music: Path) -> Callable[[str, str | bytes], Path]:
    """beside("song.txt", "text"): write a file into the music folder."""

    def write(name: str, content: str | bytes) -> Path:
        path = music / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write
