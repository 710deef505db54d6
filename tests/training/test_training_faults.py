"""Trouble on purpose: a disk that fills up in the middle of a run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_made import MakeStore, short_run

from acestep.adapters import read_adapter_tensors
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.training.checkpoints import list_checkpoints
from acestep.training.runs import RunFolder, summarise
from acestep.training.train import train


def remount(folder: Path, size: str) -> bool:
    options = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    return subprocess.run(options, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 kB: room for a few checkpoints of the tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not remount(folder, "size=700k"):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_whole_checkpoints_and_a_run_to_go_on_with(
    make_store: MakeStore, checkpoint: Checkpoint, small_disk: Path
) -> None:
    store, run = make_store(), small_disk / "run"
    settings = short_run(max_steps=30, save_every_steps=1, keep_last=0, validation="none")
    with pytest.raises(UserError, match=r"disk is full.*Free some space"):
        train(checkpoint, store, run, settings, Job())
    kept = list_checkpoints(run / "checkpoints")
    assert kept
    for folder in kept:
        assert read_adapter_tensors(folder)
    assert remount(small_disk, "remount,size=20m")
    done = train(checkpoint, store, run, settings, Job(), resume=run)
    assert done.summary.state == "finished" and done.summary.step == 30
    assert summarise(RunFolder.open(run)).state == "finished"
