"""The Preprocess tab: its form reaches the tensors, and its words tell what was done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.preprocess.store import TensorStore
from acestep.settings import PreprocessSettings
from acestep.settings.base import SettingsError, fields_of
from acestep.ui.app import App
from acestep.ui.controls import to_shown
from acestep.ui.page import Page
from acestep.ui.preprocess_tab import build_preprocess, tensor_folder

PATIENCE_S = 300.0
AWAY: dict[str, Any] = {
    "normalize": "peak",
    "max_duration_s": 4.0,
    "latents": "mean",
    "two_pass": True,
    "devices": 2,
    "lyric_windows_s": 3.0,
    "seed": 7,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture
def page(app: App) -> Page:
    page = Page(app)
    with gr.Blocks(), gr.Tabs():
        build_preprocess(page)
    return page


def shown(settings: PreprocessSettings, tensors: Path) -> dict[str, Any]:
    """What stands in the form for these settings."""
    values = {knob.name: to_shown(knob, getattr(settings, knob.name)) for knob in fields_of(PreprocessSettings)}
    return {"tensors": str(tensors), **values}


def take_songs(app: App, checkpoints: Path, songs: Path, names: tuple[str, ...]) -> None:
    """Open a folder with some of the songs and choose the demo model."""
    folder = app.datasets / "songs"
    folder.mkdir(parents=True)
    for name in names:
        for file in songs.glob(f"{name}*"):
            shutil.copy(file, folder / file.name)
    app.open_songs(folder, Job())
    app.choose(model=str(checkpoints / "acestep-v15-demo"))


@pytest.fixture
def some(demo_songs: Path) -> tuple[str, ...]:
    """The names of two of the demo's songs."""
    from acestep.dataset.store import load_dataset

    return tuple(Path(song.relative).stem for song in load_dataset(demo_songs).songs[:2])


def test_every_setting_reaches_the_tensors(
    app: App, page: Page, demo_checkpoint: Path, demo_songs: Path, some: tuple[str, ...]
) -> None:
    assert set(AWAY) == set(PreprocessSettings.model_fields)
    default = PreprocessSettings()
    assert all(getattr(default, name) != value for name, value in AWAY.items())
    take_songs(app, demo_checkpoint, demo_songs, some)
    tensors = app.datasets / "tensors"
    settings = PreprocessSettings(**AWAY)
    told = page.handler("preprocess.plan")(**shown(settings, tensors))
    assert "0 songs encoded already, 2 to do" in told["plan"] and not tensors.exists()
    page.handler("preprocess.start")(**shown(settings, tensors))
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "finished", work and (work.problem, work.trace)
    assert app.workspace.preprocess == settings and app.workspace.tensors == str(tensors)
    info, report = TensorStore.open(tensors).info, work.result
    recorded = ("normalize", "max_duration_s", "latents", "lyric_windows_s", "seed", "precision")
    assert {name: getattr(info, name) for name in recorded} == {name: AWAY[name] for name in recorded}
    assert report.two_pass and report.device.startswith("cpu")
    assert "Encoding with 2 processes on cpu" in "\n".join(work.lines)
    done = page.handler("preprocess.report")()
    assert "2 encoded, 0 unchanged, 0 failed" in done["report"] and done["plan"] == ""
    assert "2 songs encoded already, 0 to do" in page.handler("preprocess.plan")(**shown(settings, tensors))["plan"]


def test_a_click_before_the_form_is_drawn_means_what_the_form_is_to_show(
    app: App, page: Page, demo_checkpoint: Path, demo_songs: Path, some: tuple[str, ...]
) -> None:
    take_songs(app, demo_checkpoint, demo_songs, some[:1])
    app.choose(preprocess=PreprocessSettings(**AWAY))
    served = shown(PreprocessSettings(), Path()) | {"tensors": "", "form_drawn": False}  # as the app began
    told = page.handler("preprocess.plan")(**served)
    assert "0 songs encoded already, 1 to do" in told["plan"]
    assert app.workspace.preprocess == PreprocessSettings(**AWAY)
    assert app.workspace.tensors == str(app.datasets / "songs_tensors")


def test_what_is_missing_is_said(app: App, page: Page, demo_checkpoint: Path, demo_songs: Path, tmp_path: Path) -> None:
    start, good = page.handler("preprocess.start"), shown(PreprocessSettings(), app.datasets / "tensors")
    with pytest.raises(UserError, match="No songs are open"):
        start(**good)
    app.open_songs(demo_songs, Job())
    with pytest.raises(UserError, match="No model is chosen"):
        start(**good)
    app.choose(model=str(demo_checkpoint / "acestep-v15-demo"))
    with pytest.raises(UserError, match="outside the folders"):
        start(**{**good, "tensors": "/somewhere/else"})
    with pytest.raises(SettingsError) as caught:
        start(**{**good, "max_duration_s": -1, "seed": None})
    assert set(caught.value.fields) == {"max_duration_s", "seed"}
    assert not app.background.busy


def test_tensors_of_other_songs_are_neither_proposed_nor_replaced(
    app: App, page: Page, demo_checkpoint: Path, demo_songs: Path, some: tuple[str, ...]
) -> None:
    """Two albums whose files have the same names."""
    albums = [app.datasets / "first", app.datasets / "second"]
    for album, name in zip(albums, some, strict=True):
        album.mkdir(parents=True)
        for file in demo_songs.glob(f"{name}*"):
            shutil.copy(file, album / f"01{file.suffix}")
    app.choose(model=str(demo_checkpoint / "acestep-v15-demo"))
    app.open_songs(albums[0], Job())
    settings = PreprocessSettings(max_duration_s=2.0, device="cpu")
    page.handler("preprocess.start")(**shown(settings, Path(tensor_folder(app))))
    assert app.background.wait(PATIENCE_S)
    first = TensorStore.open(app.datasets / "first_tensors")
    app.open_songs(albums[1], Job())
    assert tensor_folder(app) == str(app.datasets / "second_tensors")
    page.handler("preprocess.start")(**shown(settings, first.folder))
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "failed" and "tensors of other songs" in str(work.problem)
    assert [song.id for song in TensorStore.open(first.folder).songs] == [song.id for song in first.songs]
    app.choose(tensors=str(first.folder))
    app.open_songs(albums[1], Job())
    assert app.workspace.tensors == str(first.folder), "read again, the songs are the same"
