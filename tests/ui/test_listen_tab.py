"""The Listen tab: adapters are chosen, played beside the model alone, kept, and leave the model as it was."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from adapter_pages import LOKR, LORA, app_with_runs, finish
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import GenerateSettings, fields_of
from acestep.settings.base import SettingsError
from acestep.settings.generate import SweepSettings
from acestep.ui.app import App
from acestep.ui.controls import to_shown
from acestep.ui.listen_history import PLAYS_SHOWN, history_html, play_paths, read_play
from acestep.ui.page import Page
from lora_training_ui import build

QUICK = GenerateSettings(caption="a tune", duration_s=1.0, steps=2, device="cpu", precision="fp32")


@pytest.fixture
def app(tmp_path: Path, demo_checkpoint: Path) -> App:
    return app_with_runs(tmp_path / "project", demo_checkpoint, ("run_a", LORA), ("run_b", LOKR))


@pytest.fixture
def page(app: App) -> Page:
    return build(app)[1]


def shown(settings: GenerateSettings = QUICK, **sweep: Any) -> dict[str, Any]:
    """A request as the page's controls hold it."""
    values = {knob.name: to_shown(knob, getattr(settings, knob.name)) for knob in fields_of(GenerateSettings)}
    chosen = SweepSettings(**sweep)
    return values | {knob.name: to_shown(knob, getattr(chosen, knob.name)) for knob in fields_of(SweepSettings)}


def play(page: Page, settings: GenerateSettings = QUICK, **sweep: Any) -> dict[tuple[float | None, int], bytes]:
    """Play by the page's own handler; returns the sound files by strength and seed."""
    page.handler("listen.play")(**shown(settings, **sweep))
    finish(page.app)
    pieces = read_play(play_paths(page.app)[0])
    return {(piece.strength, piece.seed): piece.file.read_bytes() for piece in pieces}


def test_adapters_are_played_beside_the_model_and_leave_it_as_it_was(page: Page) -> None:
    app = page.app
    page.handler("listen.choose_run")(adapter_run="")
    alone = play(page)
    page.handler("listen.choose_run")(adapter_run=str(app.output / "run_a"))
    first = play(page, strength=[0, 0.5, 1], takes=2)
    assert first.keys() == {(strength, seed) for strength in (0.0, 0.5, 1.0) for seed in (42, 43)}
    assert first[0, 42] == alone[None, 42]
    assert len({first[at, 42] for at in (0.0, 0.5, 1.0)}) == 3 and first[0, 43] != first[0, 42]
    parts = app.loaded.parts
    page.handler("listen.choose_run")(adapter_run=str(app.output / "run_b"))
    second = play(page, strength=[1, 0])
    assert second[0, 42] == first[0, 42] and second[1, 42] != first[1, 42]
    page.handler("listen.choose_run")(adapter_run="")
    assert play(page) == alone and app.loaded.parts is parts  # loaded once

    html = history_html(app)
    assert html.count("<audio") == 1 + 2 + 6 + 1
    assert html.index("without adapter") < html.index("strength 1<")
    note = json.loads(next(play_paths(app)[1].glob("*strength_1.json")).read_text())
    assert note["settings"]["caption"] == "a tune" and note["adapter"].startswith("run_b final") and note["seed"] == 42


def test_a_click_before_the_form_is_drawn_plays_what_the_form_is_to_show(page: Page) -> None:
    page.handler("listen.choose_run")(adapter_run="")
    page.app.choose(generate=QUICK)
    page.handler("listen.play")(**shown(GenerateSettings(caption="as the app began")), form_drawn=False)
    finish(page.app)
    (piece,) = read_play(play_paths(page.app)[0])
    assert piece.settings["caption"] == "a tune" and page.app.workspace.generate == QUICK


def test_every_setting_reaches_the_piece_and_is_remembered(page: Page) -> None:
    app = page.app
    page.handler("listen.choose_run")(adapter_run="")
    values = {"lyrics": "[verse]\nla la", "language": "de", "bpm": 120, "keyscale": "A minor", "timesignature": "3"}
    values |= {"duration_s": 1.5, "seed": 7, "steps": 3, "guidance": 2.0, "shift": 2.5, "format": "flac"}
    asked = QUICK.changed(**values)
    play(page, asked, strength=[0.25], takes=1)
    piece = read_play(play_paths(app)[0])[0]
    turbo = {"guidance": 1.0}  # the demo model is one, and says so
    assert {**piece.settings, **turbo} == {**asked.model_dump(mode="json"), **turbo}
    assert piece.file.suffix == ".flac" and piece.seed == 7
    again = App(app.project, tuple(app.roots.folders))
    assert again.workspace.generate == asked and again.workspace.sweep == SweepSettings(strength=[0.25])
    form = build(again)[1].handler("listen.form")()
    assert form["caption"] == "a tune" and form["strength"] == "0.25"


def test_the_adapter_is_that_of_the_open_run_until_another_is_chosen(page: Page) -> None:
    app, root = page.app, page.app.output
    first = page.handler("listen.adapter")()
    assert first["adapter_run"]["value"] == str(root / "run_a") and first["adapter"] == str(root / "run_a" / "final")
    labels = [label for label, _ in first["adapter_step"]["choices"]]
    assert labels == ["final, step 20", "best, step 20", "step 20", "step 10"]
    assert "LoRA" in first["adapter_about"] and "zork" in first["adapter_about"]
    early = str(root / "run_b" / "checkpoints" / "step_000010")
    chosen = page.handler("listen.choose_step")(adapter_step=early)
    assert chosen["adapter_run"]["value"] == str(root / "run_b") and chosen["adapter_step"]["value"] == early
    assert page.handler("export.adapter")()["adapter"] == early
    page.handler("runs.open")(run=str(root / "run_b"))
    assert page.handler("listen.adapter")()["adapter"] == str(root / "run_b" / "final")

    foreign = app.project / "foreign"
    shutil.copytree(root / "run_b" / "best", foreign)
    found = page.handler("listen.choose_adapter")(adapter=str(foreign))
    assert found["adapter_run"]["value"] == "" and "LoKr" in found["adapter_about"]
    assert "go on to its folder" in page.handler("listen.choose_adapter")(adapter=str(app.project))["adapter_about"]
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("listen.choose_adapter")(adapter="/etc")
    with pytest.raises(UserError, match="does not exist"):
        page.handler("listen.choose_adapter")(adapter=str(app.project / "nowhere"))


def test_a_path_that_is_typed_stays_while_runs_move_on(page: Page) -> None:
    root, look = page.app.output, page.handler("listen.adapter")
    final = str(root / "run_a" / "final")
    typing = look(adapter="/somewhere/el", adapter_drawn=final)
    assert typing["adapter"] == gr.skip() and typing["adapter_step"]["value"] == final
    page.handler("runs.open")(run=str(root / "run_b"))
    assert look(adapter=final, adapter_drawn=final)["adapter"] == str(root / "run_b" / "final")
    page.handler("listen.choose_adapter")(adapter=str(root / "run_b" / "final"))
    assert page.app.workspace.adapter_beside == "", "leaving the field as it was is no choice"


def test_browsing_chooses_the_adapter_it_comes_to(app: App) -> None:
    blocks, page = build(app)
    enter, run = page.handler("listen.adapter_enter"), app.output / "run_b"
    on_the_way = enter(adapter=str(run), adapter_folders="checkpoints")
    assert on_the_way["adapter"] == str(run / "checkpoints") and not app.workspace.adapter
    found = enter(adapter=str(run), adapter_folders="best")
    assert found["adapter"] == app.workspace.adapter == str(run / "best") and "LoKr" in found["adapter_about"]
    folders = page.tabs["listen"].parts["adapter_folders"]
    listening = [fn for fn in blocks.fns.values() if (folders._id, "input") in fn.targets]
    assert len(listening) == 1, "another would see the path of before"


def test_a_run_that_was_refused_is_not_shown_as_chosen(app: App) -> None:
    blocks, page = build(app)
    (app.output / "new").mkdir()
    (app.output / "new" / "run.json").write_text('{"schema_version": 1}')
    choose = next(fn for fn in blocks.fns.values() if fn.api_name == "listen_choose_run")
    wires = page.tabs["listen"]
    answer = choose.fn(str(app.output / "new"))
    assert "left no adapter" in answer[wires.problem]["value"]
    assert answer[wires.parts["adapter_run"]]["value"] == str(app.output / "run_a")


def test_without_a_run_no_adapter_is_found_in_the_folder_of_the_program(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "final").mkdir()
    monkeypatch.chdir(tmp_path)
    page.app.choose(run="", adapter="", adapter_beside="a run that was deleted")
    assert page.handler("listen.adapter")(adapter="before", adapter_drawn="before")["adapter"] == ""


def test_the_prompt_is_filled_from_a_song_and_with_the_trigger_word(page: Page, demo_songs: Path) -> None:
    app = page.app
    with pytest.raises(UserError, match="No song is chosen"):
        page.handler("listen.use_labels")(song=None)
    songs = app.project / "datasets" / "songs"
    shutil.copytree(demo_songs, songs)
    dataset = app.open_songs(songs, Job())
    dataset.settings = dataset.settings.changed(trigger_word="wubwub")
    _, identity = page.handler("listen.songs")()["song"]["choices"][0]
    song = next(song for song in dataset.songs if song.id == identity)
    filled = page.handler("listen.use_labels")(song=identity)
    assert filled["caption"].startswith("wubwub, ") and song.caption in filled["caption"]
    assert (filled["bpm"], filled["keyscale"]) == (song.bpm, song.keyscale)
    assert app.workspace.generate.caption == filled["caption"]
    assert page.handler("listen.insert_trigger")(caption="calm") == {"caption": "zork, calm"}
    assert page.handler("listen.insert_trigger")(caption="a zork song") == {"caption": "a zork song"}


def test_what_cannot_be_played_is_one_sentence(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page.app
    with pytest.raises(SettingsError) as wrong:
        page.handler("listen.play")(**{**shown(), "bpm": 5})
    assert "bpm" in wrong.value.fields
    with pytest.raises(UserError, match="No adapter strength"):
        page.handler("listen.play")(**{**shown(), "strength": ""})
    weights = app.output / "run_a" / "final" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        page.handler("listen.play")(**shown())
    page.handler("listen.choose_run")(adapter_run=str(app.output / "run_b"))

    import torch

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("acestep.generate.load_adapter", full)
        page.handler("listen.play")(**shown())
        app.background.wait(60)
    work = app.background.current
    assert work is not None and work.state == "failed" and not work.trace
    assert work.problem.startswith("The device ran out of memory.")
    assert not play_paths(app)
    app.choose(model="")
    with pytest.raises(UserError, match="No model is chosen"):
        page.handler("listen.play")(**shown())


def test_the_history_is_short_and_passes_over_what_is_broken(page: Page) -> None:
    app = page.app
    page.handler("listen.choose_run")(adapter_run="")
    play(page, QUICK.changed(caption="<script>alert(1)</script>"))
    whole = play_paths(app)[0]
    for number in range(PLAYS_SHOWN + 3):
        shutil.copytree(whole, whole.parent / f"2000{number:04}-000000-0")
    for name, text in (("a.json", "{"), ("b.json", '{"file": "../../secret.wav"}')):
        (whole / name).write_text(text)
    assert play_paths(app)[0] == whole and len(play_paths(app)) == PLAYS_SHOWN
    html = history_html(app)
    assert html.count("<audio") == PLAYS_SHOWN and "<script>" not in html and "secret" not in html


def test_playing_in_the_browser(app: App, open_page: Callable[[App], BrowserPage]) -> None:
    app.choose(generate=QUICK, sweep=SweepSettings(strength=[0.0, 1.0]))
    page = open_page(app)
    expect.set_options(timeout=30_000)
    page.get_by_role("tab", name="Listen", exact=True).click()
    caption = page.locator("#tab-listen #setting-caption textarea")
    expect(caption).to_have_value("a tune")
    page.get_by_role("button", name="Insert the trigger word").click()
    expect(caption).to_have_value("zork, a tune")
    page.locator("#listen-play").click()
    expect(page.locator("#listen-played audio")).to_have_count(2)
    expect(page.locator("#work-line")).to_contain_text("finished")
    with page.expect_download() as download:
        page.locator("#listen-played a", has_text="Save").first.click()
    assert re.fullmatch(r"seed_42_strength_0\.wav", download.value.suggested_filename)
    assert Path(download.value.path()).read_bytes()[:4] == b"RIFF"
    page.reload()
    page.get_by_role("tab", name="Listen", exact=True).click()
    expect(caption).to_have_value("zork, a tune")
    expect(page.locator("#listen-played audio")).to_have_count(2)
