"""What stands in the fields of all tabs: what was remembered, what a file brought, and what somebody is typing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from looks import OpenPage
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

from acestep.core.jobs import Job
from acestep.settings import DatasetSettings, GenerateSettings, PreprocessSettings, TrainSettings
from acestep.settings.export import ExportSettings
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


def test_fields_are_right_before_their_tab_is_seen_and_not_drawn_when_it_opens(app: App) -> None:
    blocks, page = build(app)  # made before anything is chosen, as when a server starts
    app.choose(
        generate=GenerateSettings(caption="a tune"),
        preprocess=PreprocessSettings(seed=7),
        train=TrainSettings(rank=3),
        export=ExportSettings(to="peft"),
        tensors=str(app.project / "tensors"),
    )
    window = OpenPage(blocks, page, "service")
    window.look()
    expected = {"listen.caption": "a tune", "preprocess.seed": 7, "train.rank": 3, "export.to": "peft"}
    expected |= {"preprocess.tensors": app.workspace.tensors, "train.tensors": app.workspace.tensors}
    assert {part: window.holds[part] for part in expected} == expected
    for tab in ("preprocess", "train", "listen", "export"):
        window.tab = tab
        fields = {f"{tab}.{name}" for controls in page.tabs[tab].controls for name in controls.knobs}
        assert not window.look().keys() & {*fields, *expected}, tab


def test_a_profile_reaches_the_forms_of_all_tabs(app: App, demo_songs: Path, tmp_path: Path) -> None:
    window, handler = opened(app, "train"), build(app)[1].handler
    asked = GenerateSettings(caption="from a file")
    sections = {"preprocess": PreprocessSettings(seed=9), "train": TrainSettings(rank=5), "generate": asked}
    save_profile(tmp_path / "all.json", {**sections, "dataset": DatasetSettings(trigger_word="zug")})
    told = handler("train.load_file")(upload=str(tmp_path / "all.json"))
    assert "No songs are open" in told["files_note"]
    window.look()
    assert (window.holds["listen.caption"], window.holds["preprocess.seed"]) == ("from a file", 9)
    assert window.holds["train.rank"] == 5

    songs = shutil.copytree(demo_songs, app.project / "songs")
    app.open_songs(songs, Job())
    handler("train.load_file")(upload=str(tmp_path / "all.json"))
    again = App(app.project)
    again.open_songs(Path(again.workspace.songs), Job())
    assert again.dataset and again.dataset.settings.trigger_word == "zug"


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
    assert not window.look().keys() & {"preprocess.tensors", "train.tensors"}

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
    window = opened(app)
    assert window.holds["preprocess.tensors"] == str(app.datasets / "tensors")
    app.open_songs(demo_songs, Job(), DatasetSettings(name="my/songs"))
    proposed = Path(window.look()["preprocess.tensors"])
    assert proposed.parent == app.datasets and proposed.name.endswith("songs_tensors")


def test_what_is_typed_in_the_instant_a_tab_opens_stays(app: App, open_page: Callable[[App], BrowserPage]) -> None:
    page = open_page(app)
    app.choose(generate=GenerateSettings(caption="remembered", seed=7))
    page.reload()
    for tab, field in (("Listen", "#setting-caption textarea"), ("Preprocess", "#preprocess-tensors textarea")):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.locator(f"#tab-{tab.lower()} {field}").fill("typed at once")
    page.wait_for_timeout(3000)  # a few looks
    expect(page.locator("#tab-preprocess #preprocess-tensors textarea")).to_have_value("typed at once")
    page.get_by_role("tab", name="Listen", exact=True).click()
    expect(page.locator("#tab-listen #setting-caption textarea")).to_have_value("typed at once")
    expect(page.locator("#tab-listen #setting-seed input")).to_have_value("7")
