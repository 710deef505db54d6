"""What stands in the fields of all tabs: what was remembered, what a file brought, and what somebody is typing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from looks import OpenPage

from acestep.core.jobs import Job
from acestep.settings import DatasetSettings, GenerateSettings, PreprocessSettings, TrainSettings
from acestep.settings.profiles import save_profile
from acestep.ui.app import App
from acestep.ui.page import drawn, followed
from lora_training_ui import build


def opened(app: App, tab: str = "service") -> OpenPage:
    """A page that has just been opened on a tab, with what its first look draws."""
    blocks, page = build(app)
    window = OpenPage(blocks, page, tab)
    window.look()
    return window


def test_a_profile_reaches_the_forms_of_all_tabs(app: App, demo_songs: Path, tmp_path: Path) -> None:
    window, handler = opened(app, "train"), build(app)[1].handler
    asked = GenerateSettings(caption="from a file")
    sections = {"preprocess": PreprocessSettings(seed=9), "train": TrainSettings(rank=5), "generate": asked}
    save_profile(tmp_path / "all.json", {**sections, "dataset": DatasetSettings(trigger_word="zug")})
    told = handler("train.load_file")(upload=str(tmp_path / "all.json"))
    assert "No songs are open" in told["files_note"]
    for tab in ("train", "listen", "preprocess"):
        window.tab = tab
        window.look()
    assert (window.holds["listen.caption"], window.holds["preprocess.seed"]) == ("from a file", 9)
    assert window.holds["train.rank"] == 5

    songs = shutil.copytree(demo_songs, app.project / "songs")
    app.open_songs(songs, Job())
    handler("train.load_file")(upload=str(tmp_path / "all.json"))
    again = App(app.project)
    again.open_songs(Path(again.workspace.songs), Job())
    assert again.dataset and again.dataset.settings.trigger_word == "zug"


def test_pages_know_when_their_forms_are_drawn(app: App) -> None:
    window = opened(app)
    tabs = {"preprocess": "form", "listen": "form", "export": "form", "dataset": "label_form"}
    assert not any(f"{tab}.{drawn(form)}" in window.holds for tab, form in tabs.items())
    for window.tab in tabs:
        window.look()
    assert all(window.holds[f"{tab}.{drawn(form)}"] is True for tab, form in tabs.items())


def test_a_slow_look_at_one_tab_does_not_draw_another_anew(app: App) -> None:
    """Nor takes from somebody what was typed there meanwhile."""
    window = OpenPage(*build(app), "train")
    late = window.ask()
    window.tab = "dataset"
    assert window.look()
    window.show(late)
    window.type("dataset.folder", "/my/songs")
    assert not window.look() and window.holds["dataset.folder"] == "/my/songs"


def test_the_demo_fills_the_form_of_an_open_page(app: App) -> None:
    window = opened(app, "train")
    app.fill(train=TrainSettings(max_steps=120), preset="demo")
    assert window.look()["train.max_steps"] == 120
    assert "train.max_steps" not in window.look()


def test_a_path_being_typed_is_left_alone_and_followed_again_when_it_was_taken(app: App) -> None:
    window = opened(app, "train")
    for tab in ("preprocess", "train"):
        window.type(f"{tab}.tensors", "/data/ten")
    app.choose(tensors=str(app.project / "others"))
    for window.tab in ("preprocess", "train"):
        assert f"{window.tab}.tensors" not in window.look()

    window.type("train.tensors", str(app.project / "mine" / ".." / "mine"))
    app.choose(tensors=str(app.project / "mine"))
    assert "train.tensors" not in window.look(), "it is the same folder, spelled by its user"
    app.choose(tensors=str(app.project / "next"))
    assert window.look()["train.tensors"] == str(app.project / "next")


@pytest.mark.parametrize(
    ("typed", "before", "field"),
    [
        ("", "", "new"),
        ("old", "old", "new"),
        ("typed", "old", None),
        ("", "old", None),
        ("new", "old", None),
        ("\0", "old", None),
    ],
)
def test_a_field_is_drawn_where_nobody_has_typed(typed: str, before: str, field: str | None) -> None:
    assert followed("path", "new", {"path": typed, drawn("path"): before}).get("path") == field


def test_the_proposed_tensor_folder_is_named_after_the_songs(app: App, demo_songs: Path) -> None:
    app.roots.folders.append(demo_songs)
    window = opened(app, "preprocess")
    assert window.holds["preprocess.tensors"] == str(app.datasets / "tensors")
    app.open_songs(demo_songs, Job(), DatasetSettings(name="my/songs"))
    proposed = Path(window.look()["preprocess.tensors"])
    assert proposed.parent == app.datasets and proposed.name.endswith("songs_tensors")
