"""The captioner: songs labelled, corrected, stopped, taken up again and opened in the trainer; keys kept nowhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import free_port
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

import captioner_ui
import lora_training_ui
from acestep.captioning import registry
from acestep.captioning.contract import Answer, BackendFacts, Guess, SongToLabel
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.dataset.song import EDITED
from acestep.settings import CaptionSettings
from acestep.settings.base import SettingsError
from acestep.ui.app import App
from acestep.ui.page import Page

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
VIEW: dict[str, Any] = {"search": "", "show": "all", "order": ["file", False]}
NAMES = ("Glass City.flac", "Harbour Lights.wav", "Night Train.mp3")
SECRET = "sk-nobody-may-read-this"


@pytest.fixture
def captioner(app: App) -> App:
    """A captioner in the project folder of `app`."""
    return App(app.project, (), captioner_ui.MEMORY)


@pytest.fixture
def songs(app: App, demo_songs: Path) -> Path:
    """Three of the demo's songs, without their labels."""
    folder = app.project / "bare songs"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(demo_songs / name, folder / name)
    return folder


class Slow:
    """A service that answers one song and then waits until it may go on."""

    facts = BackendFacts(
        "slow", "A slow service", "service", frozenset({"caption"}), key_variable="SLOW_KEY", network=True
    )
    keys: list[str]

    def __init__(self) -> None:
        self.keys = []
        self.before: Callable[[SongToLabel], None] = lambda song: None

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[Slow]:
        self.keys.append(keys["SLOW_KEY"])
        yield self

    def label(self, song: SongToLabel) -> Answer:
        self.before(song)
        return Answer({"caption": Guess(f"heard {song.path.name}")})


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """The slow service among the backends."""
    made, module = Slow(), ModuleType("acestep_test_slow")
    module.make = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.BACKENDS, "slow", f"{module.__name__}:make")
    monkeypatch.delenv("SLOW_KEY", raising=False)
    return made


def opened(page: Page, tab: str, songs: Path) -> Page:
    page.handler(f"{tab}.open")(songs=str(songs))
    finish(page.app)
    return page


def finish(app: App, state: str = "finished") -> Any:
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == state, work
    return work.result


def shown(page: Page, tab: str, **values: Any) -> dict[str, Any]:
    """What stands on the page: the settings with some of them changed, the songs chosen, empty keys."""
    keys = {name: "" for name in page.tabs[tab].parts if name.endswith("_KEY")}
    chosen = {**CaptionSettings(caption_by="", lyrics_by="", metadata_by="").model_dump(), **keys}
    return {**chosen, "label_songs": "all", "song": "", **VIEW, **values}


def press(page: Page, tab: str, button: str, **values: Any) -> dict[str, Any]:
    return dict(page.handler(f"{tab}.{button}")(**shown(page, tab, **values)) or {})


def agree(page: Page, **values: Any) -> dict[str, Any]:
    """Ask for labels and agree to what is asked."""
    asked = press(page, "songs", "label", **values)
    return press(page, "songs", "label_agreed", **values, label_asked=asked["label_asked"])


@pytest.mark.parametrize(("module", "tab"), [(captioner_ui, "songs"), (lora_training_ui, "dataset")])
def test_analysis_labels_songs_from_both_apps(module: ModuleType, tab: str, app: App, songs: Path) -> None:
    page = opened(module.build(app)[1], tab, songs)
    press(page, tab, "label", metadata_by="analysis")
    report = finish(app)
    assert (report.labelled, report.failed) == (3, 0)
    kept = json.loads((songs / "Night Train.json").read_text(encoding="utf-8"))
    assert (kept["bpm"], kept["keyscale"], kept["timesignature"]) == (132, "E minor", "4")
    assert kept["sources"]["bpm"].startswith("analysis")
    assert "E minor" in page.handler(f"{tab}.table")(**VIEW)["table"]
    assert "9 labels written for 3 of 3 songs." in page.handler(f"{tab}.label_done")()["label_report"]
    again = press(page, tab, "label", metadata_by="analysis")
    assert "have all of these labels" in again["label_plan"] and not app.background.busy


def test_songs_are_sent_only_after_consent_and_the_key_goes_nowhere_else(
    captioner: App, songs: Path, slow: Slow
) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)
    with pytest.raises(UserError, match=r"Nobody is chosen"):
        press(page, "songs", "label")
    with pytest.raises(UserError, match=r"A slow service needs a key"):
        press(page, "songs", "label", caption_by="slow")
    asked = press(page, "songs", "label", caption_by="slow", SLOW_KEY=SECRET)
    assert asked["label_confirm"]["visible"] and "3 songs leaves this computer" in asked["label_plan"]
    assert "goes to A slow service" in asked["label_plan"] and not slow.keys and not captioner.background.busy
    press(page, "songs", "label_agreed", caption_by="slow", SLOW_KEY=SECRET, label_asked=asked["label_asked"])
    assert finish(captioner).labelled == 3 and slow.keys == [SECRET]
    assert not any(SECRET.encode() in path.read_bytes() for path in captioner.project.rglob("*") if path.is_file())


def test_consent_to_some_songs_is_none_to_others(captioner: App, songs: Path, slow: Slow) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)
    values = {"caption_by": "slow", "SLOW_KEY": SECRET, "label_songs": "shown"}
    asked = press(page, "songs", "label", **values, search="Night")
    assert "1 song leaves this computer" in asked["label_plan"]
    for search in ("", "Glass"):
        again = press(page, "songs", "label_agreed", **values, search=search, label_asked=asked["label_asked"])
        assert again["label_confirm"]["visible"] and not captioner.background.busy and not slow.keys
    assert "1 song leaves" in again["label_plan"]
    press(page, "songs", "label_agreed", **values, search="Glass", label_asked=again["label_asked"])
    assert finish(captioner).told[0].song == "Glass City.flac"


def test_what_is_typed_while_a_song_is_under_way_stays(captioner: App, songs: Path, slow: Slow) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)
    assert captioner.dataset
    ids = {song.path.name: song.id for song in captioner.dataset.songs}
    slow.before = lambda song: captioner.labels.set_label(ids[song.path.name], "caption", "By hand", "me") and None
    agree(page, caption_by="slow", SLOW_KEY=SECRET)
    assert finish(captioner).told == []
    assert {song.caption for song in captioner.dataset.songs} == {"By hand"}
    assert {song.sources["caption"] for song in captioner.dataset.songs} == {EDITED}


def test_pages_follow_every_song_and_a_stopped_run_goes_on(captioner: App, songs: Path, slow: Slow) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)
    seen: list[str] = []

    def look_and_stop(song: SongToLabel) -> None:
        seen.append(page.handler("songs.label_done")()["label_report"])
        if len(seen) == 2:
            captioner.background.stop()

    slow.before = look_and_stop
    values = {"caption_by": "slow", "SLOW_KEY": SECRET, "parallel_requests": 1}
    first = captioner.dataset and captioner.dataset.songs[0]
    assert first
    form = page.handler("songs.pick")(picked={"song": first.id, "sort": ""}, **VIEW)
    agree(page, **values)
    assert finish(captioner, "stopped").labelled == 2
    assert "1 label written for 1 of 3 songs" in seen[1]
    followed = page.handler("songs.form")(song=form["song"], page="me")
    assert followed["label_caption"]["value"] == f"heard {first.path.name}" and "player" not in followed
    assert "go on with the rest" in page.handler("songs.label_done")()["label_report"]
    agree(page, **values)
    assert finish(captioner).labelled == 1


def test_trouble_with_single_songs_is_listed_and_never_a_label(captioner: App, songs: Path, slow: Slow) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)

    def refuse(song: SongToLabel) -> None:
        if "Glass" in song.path.name:
            raise UserError("It is <b>too</b> quiet.")

    slow.before = refuse
    agree(page, caption_by="slow", SLOW_KEY=SECRET)
    finish(captioner)
    report = page.handler("songs.label_done")()["label_report"]
    assert "1 song failed" in report and "Glass City.flac" in report and "&lt;b&gt;" in report
    assert captioner.dataset and not captioner.dataset.songs[0].caption


def test_settings_are_kept_as_they_are_chosen_and_wrong_ones_are_said(captioner: App) -> None:
    page = captioner_ui.build(captioner)[1]
    values = {name: value for name, value in shown(page, "songs").items() if name in CaptionSettings.model_fields}
    change = page.handler("songs.label_settings")
    told = change(**{**values, "caption_by": "gemini", "parallel_requests": 7})
    assert told["GEMINI_API_KEY"]["visible"] and not told["OPENAI_API_KEY"]["visible"]
    assert "gets the sound of your songs" in told["label_about"]
    with pytest.raises(SettingsError):
        change(**{**values, "window_s": 1})
    again = captioner_ui.build(App(captioner.project, (), captioner_ui.MEMORY))[1]
    form = again.handler("songs.label_form")()
    assert (form["caption_by"], form["parallel_requests"]) == ("gemini", 7) and form["GEMINI_API_KEY"]["visible"]
    assert not (captioner.project / "trainer_config.json").exists()
    assert "KEY" not in (captioner.project / captioner_ui.MEMORY).read_text(encoding="utf-8")


def test_the_trigger_word_is_written_into_every_song_and_taken_back(captioner: App, songs: Path) -> None:
    page = opened(captioner_ui.build(captioner)[1], "songs", songs)
    page.handler("songs.tag")(tag="demostyle")
    assert json.loads((songs / "Night Train.json").read_text())["custom_tag"] == "demostyle"
    assert page.handler("songs.tag_follow")()["tag"] == "demostyle"
    page.handler("songs.bulk_undo")()
    assert not list(songs.glob("*.json"))


def test_while_another_program_works_the_page_says_so_and_songs_still_open(captioner: App, songs: Path) -> None:
    page = captioner_ui.build(captioner)[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "working\n"
    try:
        assert "Training my style" in page.handler("frame.work")()["work"]
        opened(page, "songs", songs)
        with pytest.raises(UserError, match="Training my style"):
            press(page, "songs", "label", metadata_by="analysis")
    finally:
        holder.communicate("\n", timeout=PATIENCE_S)
    assert "Training" not in page.handler("frame.work")()["work"]
    press(page, "songs", "label", metadata_by="analysis")
    assert finish(captioner).labelled == 3


HOLDS = """
from acestep.core.jobs import heavy_job
with heavy_job("Training my style"):
    print("working", flush=True)
    input()
"""


def test_folder_to_trainer_in_the_browser(
    app: App, captioner: App, songs: Path, slow: Slow, open_page: Callable[..., BrowserPage]
) -> None:
    expect.set_options(timeout=PATIENCE_S * 1000)
    page = open_page(captioner, build=captioner_ui.build)
    expect(page.get_by_text("No songs are open yet")).to_be_visible()
    page.get_by_label("Folder of songs, or a dataset file").fill(str(songs))
    page.get_by_role("button", name="Open", exact=True).click()
    expect(page.locator("#songs").get_by_text("Night Train.mp3")).to_be_visible()
    for field, choice in (("Caption by", "A slow service"), ("Lyrics by", "nobody")):
        page.get_by_label(field).click()
        page.get_by_role("option", name=choice).click()
        expect(page.get_by_role("option")).to_have_count(0)  # a list that still folds away has a nobody, too
    key = page.get_by_label("Key (SLOW_KEY)")
    key.fill(SECRET)
    page.get_by_role("button", name="Label the songs").click()
    expect(page.locator("#label-plan")).to_contain_text("leaves this computer and goes to A slow service")
    slow.before = lambda song: captioner.background.stop() if "Harbour" in song.path.name else None
    page.get_by_role("button", name="Yes, begin").click()
    expect(page.locator("#work-line")).to_contain_text("was stopped")
    expect(page.locator("#songs").get_by_text("E minor")).to_be_visible()
    page.get_by_role("button", name="Night Train.mp3").click()
    expect(page.locator("#label-keyscale input")).to_have_value("E minor")
    page.locator("#label-genre input, #label-genre textarea").fill("night music")
    expect(page.get_by_text("Saved")).to_be_visible()
    page.get_by_role("button", name="Label the songs").click()
    page.get_by_role("button", name="Yes, begin").click()
    expect(page.locator("#songs").get_by_text("heard Night Train.mp3")).to_be_visible()
    expect(page.locator("#work-line")).to_contain_text("is finished")
    page.reload()
    expect(page.get_by_label("Caption by")).to_have_value("A slow service")
    expect(page.get_by_label("Key (SLOW_KEY)")).to_have_value("")
    assert SECRET not in page.content()
    page.get_by_text("Where the labels are").click()
    expect(page.locator("#song-key")).to_be_hidden()
    page.locator("#dataset-file textarea").fill(str(app.project / "labels.json"))
    page.get_by_role("button", name="Save the dataset file").click()
    expect(page.get_by_text("Saved to")).to_be_visible()
    assert not any(SECRET.encode() in path.read_bytes() for path in app.project.rglob("*") if path.is_file())

    page.get_by_role("tab", name="This computer").click()
    expect(page.locator("#captioner-backends")).to_contain_text("Whisper")

    trainer = open_page(app)
    trainer.get_by_role("tab", name="Dataset").click()
    expect(trainer.get_by_text("No songs are open yet")).to_be_visible()  # the fields are filled in by then
    trainer.get_by_label("Folder of songs, or a dataset file").fill(str(app.project / "labels.json"))
    trainer.get_by_role("button", name="Open", exact=True).click()
    trainer.get_by_role("button", name="Night Train.mp3").click()
    expect(trainer.locator("#label-caption textarea")).to_have_value("heard Night Train.mp3")
    expect(trainer.locator("#label-genre input, #label-genre textarea")).to_have_value("night music")


def listens(port: int) -> str:
    """The title of the app on a port; empty where nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return ""
    return "captioner" if captioner_ui.TITLE in text else "trainer" if lora_training_ui.TITLE in text else "?"


@pytest.mark.skipif(sys.platform == "win32", reason="signals between processes are POSIX")
def test_both_apps_start_and_end_together(tmp_path: Path) -> None:
    for name in ("launch.py", "lora_training_ui.py", "captioner_ui.py"):
        shutil.copy(ROOT / name, tmp_path / name)  # the apps remember things beside themselves
    port = free_port()
    command = [sys.executable, str(tmp_path / "launch.py"), "--mode", "both", "--port", str(port), "--no-browser"]
    both = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert both.stdout is not None
    said = sorted(both.stdout.readline() for _ in range(2))
    assert captioner_ui.TITLE in said[0] and f":{port + 1}" in said[0]
    assert lora_training_ui.TITLE in said[1] and f":{port}" in said[1]
    assert (listens(port), listens(port + 1)) == ("trainer", "captioner")
    both.send_signal(signal.SIGTERM)
    assert both.wait(PATIENCE_S) == 0
    assert (listens(port), listens(port + 1)) == ("", "")
