"""What another program changes in the songs' files: the page says so, and reads them again when it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

from acestep.cli import main
from acestep.core.jobs import Job
from acestep.dataset.editing import set_labels
from acestep.ui import outside
from acestep.ui.app import App
from acestep.ui.dataset_tab import facts_html, facts_sign
from acestep.ui.outside import COST, LOOK_AGAIN_S, OutsideChanges
from lora_training_ui import build

PATIENCE_S = 60.0
SONG = "Night Train.mp3"


@pytest.fixture
def songs(app: App, demo_songs: Path) -> Path:
    """The demo's songs, open in the app."""
    folder = shutil.copytree(demo_songs, app.project / "my songs")
    app.open_songs(folder, Job())
    return folder


def write_genre(songs: Path, words: str) -> None:
    """What another program does to the labels of a song."""
    file = (songs / SONG).with_suffix(".json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "genre": words}))


def test_looks_are_far_apart_and_the_further_the_longer_they_take(
    app: App, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 0.0, 0

    def changed(file: Path | None) -> bool:
        nonlocal now, looks
        now, looks = now + 1, looks + 1
        return False

    changes = OutsideChanges(app.labels, lambda: now)
    assert app.dataset is not None
    monkeypatch.setattr(app.dataset.files, "changed", changed)
    assert not changes.look() and not changes.look() and looks == 1
    now += COST - 1
    assert not changes.look() and looks == 1
    now += 2
    assert not changes.look() and looks == 2 and LOOK_AGAIN_S < COST


def test_what_is_edited_here_while_the_files_are_looked_at_is_no_change(
    app: App, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.dataset is not None

    def edited(file: Path | None) -> bool:
        app.labels.apply(set_labels(app.labels.history.dataset.songs, genre="typed"))
        return True

    monkeypatch.setattr(app.dataset.files, "changed", edited)
    assert not OutsideChanges(app.labels).look()


def test_labels_of_the_command_line_are_told_and_read(app: App, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(outside, "COST", 0)
    page = build(app)[1]
    file = app.labels.keep_in(songs / "set.json")
    before = facts_sign(app)
    assert "Another program" not in facts_html(app)
    edited = ["dataset", str(file), "--save", str(file), "--set", "genre=from a terminal"]
    assert main(edited) == 0
    assert facts_sign(app) != before
    assert "Another program has changed set.json since it was read here" in facts_html(app)
    page.handler("dataset.read_changed")()
    assert app.background.wait(PATIENCE_S)
    assert {song.genre for song in app.labels.history.dataset.songs} == {"from a terminal"}
    facts_sign(app)
    assert "Another program" not in facts_html(app)


def test_the_sentence_comes_by_itself_and_no_typed_text_is_drawn_over(
    app: App, songs: Path, open_page: Callable[[App], BrowserPage]
) -> None:
    page = open_page(app)
    page.get_by_role("tab", name="Dataset").click()
    page.get_by_role("button", name=SONG).click()
    caption = page.locator("#label-caption textarea")
    caption.fill("")
    caption.press_sequentially("A train at ni", delay=10)
    write_genre(songs, "from another program")
    expect(page.get_by_text("Another program has changed files of these songs")).to_be_visible()
    expect(caption).to_be_focused()
    caption.press_sequentially("ght", delay=10)
    expect(caption).to_have_value("A train at night")
    page.get_by_role("button", name="Read them again").click()
    expect(page.locator("#label-genre input, #label-genre textarea")).to_have_value("from another program")
    expect(caption).to_have_value("A train at night")
    expect(page.get_by_text("Another program has changed")).to_be_hidden()
