"""Trouble on purpose: each kind ends in a sentence on the page, and what was done before it is kept."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect
from train_page import QUICK, app_with_tensors, page_of, start

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import PreprocessSettings, TrainSettings
from acestep.training import loop
from acestep.ui.app import App

PATIENCE_S = 120.0


@pytest.fixture
def trainer(tmp_path: Path, demo_checkpoint: Path, demo_tensors: Path) -> App:
    return app_with_tensors(tmp_path / "project", demo_checkpoint, demo_tensors)


@pytest.fixture
def disk(trainer: App) -> Iterator[Callable[[Path, str], None]]:
    """Puts a small disk in the place of a folder; its options are such as size=300k, or ro."""
    mounted: list[Path] = []

    def put(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)

    yield put
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def songs(trainer: App, demo_songs: Path) -> Path:
    """The demo's songs, open in the app."""
    folder = shutil.copytree(demo_songs, trainer.project / "songs")
    trainer.open_songs(folder, Job())
    return folder


def failure(app: App) -> str:
    """What the page says of the work that failed; a sentence, and no bug."""
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "failed" and not work.trace, work
    return work.problem


def test_a_crash_of_training_gives_its_reason_and_the_log(
    trainer: App, monkeypatch: pytest.MonkeyPatch, open_page: Callable[[App], BrowserPage]
) -> None:
    expect.set_options(timeout=PATIENCE_S * 1000)
    real = loop.optimizer_step
    page = open_page(trainer)
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_role("tab", name="Watch").click()
    for error, sentence, logged in (
        (torch.OutOfMemoryError("CUDA out of memory."), "Memory ran out on cpu after step 2", "saved"),
        (ValueError("a bug"), "ValueError: a bug", "in break_down"),
    ):
        steps: list[int] = []

        def break_down(session: Any, *rest: Any, error: Exception = error, steps: list[int] = steps) -> Any:
            if len(steps) == 2:
                raise error
            steps.append(1)
            return real(session, *rest)

        monkeypatch.setattr(loop, "optimizer_step", break_down)
        start(page_of(trainer), TrainSettings(**{**QUICK, "save_every_steps": 1, "max_steps": 50}))
        expect(page.locator("#train-status [role=alert]")).to_contain_text(f"The run failed: {sentence}")
        expect(page.locator("#work-line")).to_contain_text(f"failed: {sentence}")
        expect(page.locator("#train-log textarea")).to_have_value(re.compile(logged))


def test_a_disk_that_fills_up_while_training_is_said(trainer: App, disk: Callable[[Path, str], None]) -> None:
    disk(trainer.output, "size=300k")
    page = page_of(trainer)
    start(page, TrainSettings(**{**QUICK, "max_steps": 50, "save_every_steps": 1, "keep_last": 0}))
    sentence = failure(trainer)
    assert "The disk is full" in sentence and "Free some space" in sentence
    assert "The disk is full" in page.handler("train.live")()["status"]


def test_encoding_onto_a_full_disk_is_said(trainer: App, songs: Path, disk: Callable[[Path, str], None]) -> None:
    disk(trainer.project / "small", "size=100k")
    encode(trainer, trainer.project / "small" / "tensors")
    assert "The disk is full" in failure(trainer)


def test_a_folder_that_takes_nothing_is_said(trainer: App, songs: Path, disk: Callable[[Path, str], None]) -> None:
    disk(trainer.project / "read only", "ro")
    encode(trainer, trainer.project / "read only" / "tensors")
    assert "cannot be written" in failure(trainer)


def test_a_file_in_the_place_of_a_folder_is_said(trainer: App, songs: Path) -> None:
    file = trainer.project / "notes.txt"
    file.write_text("not a folder")
    page = page_of(trainer)
    encode(trainer, file)
    assert "is a file, not a folder" in failure(trainer)
    with pytest.raises(UserError, match="does not exist"):
        page.handler("service.look")(checkpoints=str(file))
    page.handler("dataset.open")(songs=str(file))
    assert "notes.txt" in failure(trainer)


def test_a_model_that_is_gone_is_said(trainer: App, songs: Path) -> None:
    trainer.choose(model=str(trainer.project / "gone"))
    page = page_of(trainer)
    with pytest.raises(UserError, match="gone"):
        start(page, TrainSettings(**QUICK))
    with pytest.raises(UserError, match="gone"):
        encode(trainer, trainer.project / "tensors")
    assert not trainer.background.busy
    assert "gone" in page.handler("service.models")()["models"]["choices"][-1][0]


def encode(app: App, folder: Path) -> None:
    """Press the button of Preprocess."""
    page_of(app).handler("preprocess.start")(tensors=str(folder), **PreprocessSettings().model_dump())
