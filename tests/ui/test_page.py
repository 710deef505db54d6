"""The frame of a page: errors stand where they belong, and every window shows the same work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as BrowserPage

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import PreprocessSettings
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.page import Page
from acestep.ui.roots import Roots
from acestep.ui.wiring import BUG, Wires
from lora_training_ui import build

PATIENCE_S = 30.0


@pytest.fixture
def wires() -> Iterator[Wires]:
    """A tab with two settings and a button's function that does what the text says."""
    with gr.Blocks():
        problem = gr.Markdown()
        tab = Wires("test", problem)
        controls = Controls(PreprocessSettings)
        controls.draw(["seed", "max_duration_s"], {})
        tab.add_controls(controls)
        tab.add(button=gr.Button("Go"), text=gr.Textbox())

        def work(text: str, **shown: object) -> dict[str, object]:
            if text == "refuse":
                raise UserError("The folder is empty.", fix="Choose another.", detail="a\nb")
            if text == "break":
                raise KeyError("x")
            PreprocessSettings.parse(controls.values(shown), "Preprocess")
            return {"text": "done"}

        tab.on(tab.parts["button"].click, "work", work, ["text", *controls.knobs], ["text"])
        yield tab


def press(wires: Wires, **inputs: object) -> dict[str, object]:
    """What the page would get: updates by the name of the part."""
    dependency = next(iter(gr.context.Context.root_block.fns.values()))
    updates = dependency.fn(*inputs.values())
    names = {part: name for name, part in wires.parts.items()} | {wires.problem: "problem"}
    return {names[part]: update for part, update in updates.items()}


def test_a_good_answer_comes_by_name(wires: Wires) -> None:
    updates = press(wires, text="", seed=1, max_duration_s=60)
    assert updates["text"] == "done" and updates["problem"]["visible"] is False


def test_an_error_of_the_user_stands_in_the_problem_line(wires: Wires) -> None:
    updates = press(wires, text="refuse", seed=1, max_duration_s=60)
    assert updates["problem"]["visible"] and "The folder is empty. Choose another." in updates["problem"]["value"]
    assert "text" not in updates


def test_a_bug_is_named_as_one_and_leaves_its_traceback_in_the_log(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    updates = press(wires, text="break", seed=1, max_duration_s=60)
    assert BUG in updates["problem"]["value"]
    assert "KeyError" in caplog.text and "Traceback" in caplog.text


def test_a_wrong_setting_is_marked_until_it_is_right(wires: Wires) -> None:
    updates = press(wires, text="", seed=-1, max_duration_s=60)
    assert "wrong" in updates["seed"]["elem_classes"] and "greater than or equal to 0" in updates["seed"]["info"]
    assert "max_duration_s" not in updates and updates["problem"]["visible"]
    updates = press(wires, text="", seed=1, max_duration_s=60)
    assert "wrong" not in updates["seed"]["elem_classes"] and updates["text"] == "done"
    again = press(wires, text="", seed=1, max_duration_s=60)
    assert "wrong" not in again["seed"]["elem_classes"], "a second page, where the mark still stands, loses it too"
    assert "max_duration_s" not in again


def test_a_name_stands_for_one_component(wires: Wires) -> None:
    with pytest.raises(ValueError, match="two components named text"):
        wires.add(text=gr.Textbox())


def test_a_part_that_cannot_be_drawn_does_not_stop_the_others(app: App) -> None:
    page = Page(app)
    with gr.Blocks():
        wires = page.wires("frame")
        wires.add(one=gr.Textbox(), two=gr.Textbox())

    gone = [True]

    def refuse() -> None:
        if gone:
            raise UserError("The run is gone.")

    page.watch(wires, "one", lambda: 1, refuse, ["one"])
    page.watch(wires, "two", lambda: 1, lambda: {"two": "here"}, ["two"])
    signs, updates = zip(*(watcher.look(None) for watcher in page.watchers), strict=True)
    assert updates[0][wires.problem]["value"] == "The run is gone." and updates[1] == {wires.parts["two"]: "here"}
    assert page.watchers[0].look(signs[0])[1] == {}, "the same trouble is said once"
    gone.clear()
    sign, over = page.watchers[0].look(signs[0])
    assert not over[wires.problem]["visible"], "and no longer than it lasts"
    assert page.watchers[0].look(sign)[1] == {}


def test_every_window_shows_the_same_work_and_can_stop_it(
    app: App, browser: Browser, open_page: Callable[[App], BrowserPage]
) -> None:
    begun = threading.Event()

    def sing(job: Job) -> None:
        with job.stage("sing", 100, "songs") as stage:
            stage.advance(40, note="verse two")
            begun.set()
            while True:
                job.check_stop()

    app.background.start("sing", "Singing for everyone", sing)
    assert begun.wait(PATIENCE_S)
    first = open_page(app)
    expect(first.get_by_text("sing: 40 of 100 songs, verse two")).to_be_visible()
    second = browser.new_page()  # to the app the same as a reload
    second.goto(first.url)
    expect(second.get_by_text("Singing for everyone")).to_be_visible()
    second.get_by_role("button", name="Stop").click()
    expect(first.get_by_text("was stopped; what was done is kept")).to_be_visible()
    expect(second.get_by_role("button", name="Stop")).to_be_hidden()
    second.close()
    assert app.background.current and app.background.current.state == "stopped"


def test_songs_are_open_again_after_a_restart(app: App, demo_songs: Path) -> None:
    app.roots = Roots([app.project, demo_songs])
    app.open_songs(demo_songs, Job())
    again = App(app.project, (demo_songs,))
    again.reopen_songs()
    assert again.background.wait(PATIENCE_S)
    assert again.dataset and app.dataset and len(again.dataset.songs) == len(app.dataset.songs)
    gone = App(app.project)
    gone.choose(songs=str(app.project / "gone"))
    gone.reopen_songs()
    assert gone.background.current is None and gone.dataset is None


def test_what_was_chosen_is_remembered_and_a_damaged_memory_is_kept_aside(app: App) -> None:
    app.choose(model="/models/turbo", preprocess=PreprocessSettings(seed=7))
    again = App(app.project)
    assert (again.workspace.model, again.workspace.preprocess.seed) == ("/models/turbo", 7)
    (app.project / "trainer_config.json").write_text("{not json")
    damaged = App(app.project)
    assert damaged.workspace.model == "" and "trainer_config.unreadable.json" in damaged.notes[0]
    assert (app.project / "trainer_config.unreadable.json").read_text() == "{not json"


def test_the_line_on_ended_work_is_put_away_until_there_is_new_work(app: App) -> None:
    page = build(app)[1]
    show, dismiss = page.handler("frame.work"), page.handler("frame.dismiss")
    app.background.start("demo", "Making tea", lambda job: None)
    assert app.background.wait(30)
    assert "Making tea" in show()["work"] and show()["dismiss"]["visible"]
    assert dismiss()["work"] == "" and show()["work"] == ""
    app.background.start("demo", "Making coffee", lambda job: None)
    assert app.background.wait(30)
    assert "Making coffee" in show()["work"]
