"""A small folder of labelled songs that is quick to encode, and ways to run preprocessing on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from preprocess_songs import SETTINGS, write_songs
from shared_folders import filled_once

from acestep.core.jobs import Job
from acestep.dataset.dataset import Dataset
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.preprocess.run import PreprocessReport, preprocess
from acestep.settings.preprocess import PreprocessSettings

Encode = Callable[..., PreprocessReport]


@contextmanager
def single_thread() -> Iterator[None]:
    """Tests run beside each other, and bits are compared between processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="session")
def tiny_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled_once(tmp_path_factory, "tiny-songs", write_songs)


@pytest.fixture
def songs(tiny_songs: Path, tmp_path: Path) -> Path:
    """A copy of the three short songs that a test may change."""
    return Path(shutil.copytree(tiny_songs, tmp_path / "songs"))


@pytest.fixture(scope="session")
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint(demo_checkpoint)


@pytest.fixture(scope="session")
def encode(checkpoint: Checkpoint) -> Encode:
    """Scan a folder (or take a dataset) and preprocess it; keyword arguments are settings."""

    def run(songs: Path | Dataset, out: Path, job: Job | None = None, **settings: object) -> PreprocessReport:
        dataset = songs if isinstance(songs, Dataset) else scan_folder(songs, SETTINGS)
        chosen = PreprocessSettings.parse({"device": "cpu", **settings}, "test")
        with single_thread():
            return preprocess(dataset, checkpoint, out, chosen, job)

    return run


@pytest.fixture(scope="session")
def encoded_once(tiny_songs: Path, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tensor folder of the three songs, made in one pass. Not to be changed."""
    return filled_once(tmp_path_factory, "tiny-tensors", lambda folder: encode(tiny_songs, folder))


@pytest.fixture
def encoded(encoded_once: Path, tmp_path: Path) -> Path:
    """A copy of the tensor folder of the three songs."""
    return Path(shutil.copytree(encoded_once, tmp_path / "tensors"))
