"""The Runs tab: history, curves, differences; opening, resuming and deleting runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acestep.core.errors import UserError
from acestep.core.events import EventLog
from acestep.settings import TrainSettings
from acestep.training import history
from acestep.training.history import RunHistory, delete_run, run_sign
from acestep.training.runs import RunFolder, summarise
from acestep.ui.app import App
from acestep.ui.page import Page
from lora_training_ui import build

PATIENCE_S = 120.0


def write_run(root: Path, name: str, steps: int = 4, state: str = "", **settings: object) -> RunFolder:
    """A run folder as training leaves it, without weights."""
    record = {
        "settings": TrainSettings().changed(**settings).model_dump(mode="json"),
        "model": {"name": "acestep-v15-demo", "path": str(root)},
        "tensors": {"dataset": "songs", "songs": 8, "path": str(root)},
        "plan": {"total_steps": 10},
    }
    run = RunFolder.create(root / name, record)
    run.release()
    log = run.event_log()
    log.emit("start", step=0, total_steps=10)
    for step in range(1, steps + 1):
        log.emit("step", step=step, loss=1 / step)
    log.emit("validation", step=steps, loss=0.5 + len(name) / 100)
    if state:
        log.emit("end", state=state, step=steps)
    return run


@pytest.fixture
def runs_app(tmp_path: Path) -> App:
    """An app with a finished run, an interrupted one, and one that cannot be read."""
    app = App(tmp_path)
    write_run(app.output, "one", state="finished", rank=8)
    write_run(app.output, "second", steps=6, learning_rate=0.003)
    (app.output / "broken").mkdir()
    (app.output / "broken" / "run.json").write_text("{")
    (app.output / "odd").mkdir()
    (app.output / "odd" / "run.json").write_text('{"schema_version": 1, "plan": {"total_steps": "many"}}')
    return app


@pytest.fixture
def page(runs_app: App) -> Page:
    return build(runs_app)[1]


def test_states_come_from_the_log_and_from_the_lock(runs_app: App) -> None:
    run = RunFolder.open(runs_app.output / "second")
    assert summarise(run).state == "interrupted" and not run.is_running()
    before = run_sign(run.path)
    run.claim()
    assert summarise(run).state == "running" and run_sign(run.path) != before
    with pytest.raises(UserError, match="is running"):
        delete_run(run.path, runs_app.output)
    run.release()
    assert summarise(run).state == "interrupted"
    (run.path / ".run.lock").unlink()
    assert summarise(run).state == "interrupted" and not (run.path / ".run.lock").exists()  # looking writes nothing


def test_the_table_lists_runs_and_what_cannot_be_read(page: Page) -> None:
    shown = page.handler("runs.table")()
    assert "one" in shown["table"] and "interrupted" in shown["table"] and "finished" in shown["table"]
    trouble = shown["trouble"]["value"]
    assert "broken" in trouble and "odd" in trouble and "line 1" in trouble


def test_summaries_are_read_again_only_when_something_changed(runs_app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(run: RunFolder):
        read.append(run.path.name)
        return summarise(run)

    monkeypatch.setattr(history, "summarise", counted)
    runs_app.history.read(runs_app.output)
    assert sorted(read) == ["odd", "one", "second"]
    read.clear()
    runs_app.history.read(runs_app.output)
    assert read == ["odd"]  # what could not be read may be mended
    EventLog(runs_app.output / "second" / "events.jsonl").emit("end", state="stopped", step=6)
    summaries, _ = runs_app.history.read(runs_app.output)
    assert {summary.name: summary.state for summary in summaries} == {"one": "finished", "second": "stopped"}


def test_a_growing_log_is_read_a_few_times_its_length_at_most(runs_app: App) -> None:
    run = RunFolder.open(runs_app.output / "second")
    log, signs, size, total = run.path / "events.jsonl", set(), 0, 0
    run.claim()
    for _ in range(2000):
        with open(log, "ab") as handle:
            handle.write(b'{"kind": "step", "step": 7, "loss": 0.25}\n')
        sign = run_sign(run.path)
        if sign not in signs:
            signs.add(sign)
            size = log.stat().st_size
            total += size
    run.release()
    assert total < 60 * size


def test_one_look_at_all_runs_serves_everyone_for_a_while(runs_app: App) -> None:
    now = [0.0]
    runs = RunHistory(lambda: now[0])
    before = runs.sign(runs_app.output)
    write_run(runs_app.output, "third")
    assert runs.sign(runs_app.output) == before
    now[0] = 2.0
    assert runs.sign(runs_app.output) != before


def test_curves_forget_what_a_resumed_run_did_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", steps=4)
    log = run.event_log()
    log.emit("resume", step=2, total_steps=10)
    log.emit("step", step=3, loss=9.0)
    log.emit("step", step=4, loss=None)
    story = run.story()
    assert story.training == [(1, 1.0), (2, 0.5), (3, 9.0)] and story.validations == []


def test_runs_are_compared_with_curves_and_differences(page: Page) -> None:
    one, second = (str(page.app.output / name) for name in ("one", "second"))
    page.handler("runs.choose")(run=one, compared=[second])
    choices = page.handler("runs.choices")()
    assert choices["run"]["value"] == one and choices["compared"]["value"] == [second]
    shown = page.handler("runs.details")()
    assert "Rank" in shown["differences"] and "0.003" in shown["differences"]
    assert "8 (default" in shown["settings"] and shown["charts"].count("<polyline") == 2
    assert page.handler("runs.draw")(smoothing=0.0, logarithmic=True)["charts"] != shown["charts"]
    assert page.app.workspace.runs_logarithmic


def test_only_runs_of_the_output_folder_are_taken(page: Page, tmp_path: Path) -> None:
    outside = write_run(tmp_path / "elsewhere", "run").path
    for name in ("open", "resume", "ask_delete"):
        with pytest.raises(UserError, match="No run is chosen"):
            page.handler(f"runs.{name}")(run=None)
        with pytest.raises(UserError, match="is not in"):
            page.handler(f"runs.{name}")(run=str(outside))
    with pytest.raises(UserError, match="is not in"):
        page.handler("runs.delete")(doomed=str(outside))
    assert outside.is_dir()


def test_deleting_asks_and_takes_only_that_run(page: Page) -> None:
    app = page.app
    page.handler("runs.open")(run=str(app.output / "second"))
    assert app.workspace.run == str(app.output / "second")
    asked = page.handler("runs.ask_delete")(run=str(app.output / "second"))
    assert asked["confirm"]["visible"] and "second" in asked["question"] and (app.output / "second").is_dir()
    page.handler("runs.delete")(doomed=asked["doomed"])
    assert not (app.output / "second").exists() and (app.output / "one").is_dir() and app.workspace.run == ""
    assert [path.name for path in app.output.glob(".*")] == []


def test_what_is_no_run_is_never_deleted(runs_app: App, tmp_path: Path) -> None:
    songs = runs_app.output / "songs"
    songs.mkdir()
    link = runs_app.output / "link"
    link.symlink_to(write_run(tmp_path / "elsewhere", "run").path, target_is_directory=True)
    for path in (songs, runs_app.output, link, runs_app.output / ".." / "elsewhere" / "run"):
        with pytest.raises(UserError):
            delete_run(path, runs_app.output)
    assert songs.is_dir() and (tmp_path / "elsewhere" / "run" / "run.json").is_file()


def test_only_a_run_that_has_not_come_to_its_end_is_offered_to_go_on(page: Page) -> None:
    app, states = page.app, {"one": "finished", "second": "interrupted", "third": "stopped", "fourth": "failed"}
    for name in ("third", "fourth"):
        write_run(app.output, name, state=states[name])
    for name in states:
        (app.output / name / "checkpoints").mkdir()
    offered = {}
    for name in states:
        page.handler("runs.choose")(run=str(app.output / name), compared=[])
        page.handler("runs.choices")()
        offered[name] = page.handler("runs.details")()["resume"]["visible"]
    assert offered == {"one": False, "second": True, "third": True, "fourth": True}
    RunFolder.open(app.output / "fourth").event_log().emit("resume", step=4, total_steps=10)
    (app.output / "fourth" / "checkpoints").rmdir()
    assert not page.handler("runs.details")()["resume"]["visible"], "nothing is there to go on from"


def test_an_open_run_that_cannot_be_read_does_not_hide_the_others(page: Page) -> None:
    app = page.app
    for name in ("broken", "odd"):
        app.choose(run=str(app.output / name), looked_at=str(app.output / name))
        shown = page.handler("runs.choices")()
        assert shown["details"]["visible"] and shown["run"]["value"] in [path for _, path in shown["run"]["choices"]]
        assert "Rank" in page.handler("runs.details")()["settings"]


def test_a_finished_run_and_one_whose_model_is_gone_are_not_resumed(page: Page) -> None:
    with pytest.raises(UserError, match="is finished"):
        page.handler("runs.resume")(run=str(page.app.output / "one"))
    page.handler("runs.open")(run=str(page.app.output / "one"))
    with pytest.raises(UserError, match="is finished"):
        page.handler("train.resume")(longer=False)
    shutil.rmtree(page.app.output / "broken")
    with pytest.raises(UserError):
        page.handler("runs.resume")(run=str(page.app.output / "second"))
    assert not page.app.background.busy


def test_a_stopped_run_goes_on_in_the_background(tmp_path: Path, demo_checkpoint: Path, tiny_tensors: Path) -> None:
    from acestep.core.jobs import Job, Stage
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.store import TensorStore
    from acestep.training.train import train

    app = App(tmp_path, (demo_checkpoint, tiny_tensors))
    settings = TrainSettings().changed(
        max_steps=4, rank=2, alpha=2, batch_size=1, gradient_accumulation=1, max_latent_length=125, validation="none"
    )
    job = Job()
    job.listen(lambda kind, what: job.request_stop() if isinstance(what, Stage) and what.done == 2 else None)
    checkpoint = resolve_checkpoint(demo_checkpoint / "acestep-v15-demo")
    outcome = train(checkpoint, TensorStore.open(tiny_tensors), app.output / "run", settings, job)
    assert outcome.summary.state == "stopped" and not outcome.run.is_running()
    page = build(app)[1]
    page.handler("runs.resume")(run=str(outcome.run.path))
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and (work.state, work.subject) == ("finished", outcome.run.path), work.problem
    summary = summarise(outcome.run)
    assert (summary.state, summary.step) == ("finished", 4) and app.workspace.run == str(outcome.run.path)


@pytest.fixture(scope="module")
def tiny_tensors(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path, demo_songs: Path) -> Path:
    """Two encoded songs of the demo."""
    from acestep.core.jobs import Job
    from acestep.dataset.store import load_dataset
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.run import preprocess
    from acestep.settings import PreprocessSettings

    folder = tmp_path_factory.mktemp("tensors")
    dataset = load_dataset(demo_songs)
    del dataset.songs[2:]
    checkpoint = resolve_checkpoint(demo_checkpoint / "acestep-v15-demo")
    preprocess(dataset, checkpoint, folder, PreprocessSettings(), Job())
    return folder


def test_the_command_line_lists_the_rest_and_deletes_on_demand(
    runs_app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep.cli import main

    assert main(["runs", str(runs_app.output), "--json"]) == 3
    listed = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in listed["runs"]] == ["one", "second"] and len(listed["problems"]) == 2
    assert main(["runs", str(runs_app.output / "one"), "--delete"]) == 1
    assert (runs_app.output / "one").is_dir()
    assert main(["runs", str(runs_app.output / "one"), "--delete", "--yes"]) == 0
    assert not (runs_app.output / "one").exists()


def test_the_page_deletes_a_run_after_asking(runs_app: App, open_page) -> None:
    page = open_page(runs_app)
    page.get_by_role("tab", name="Runs").click()
    page.locator("#runs-table").get_by_text("second").wait_for()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Keep it").wait_for(state="hidden")
    chosen = page.get_by_label("Run", exact=True).input_value()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete it").click()
    page.get_by_text(f"{chosen} is deleted.").wait_for()
    page.locator("#runs-table").get_by_text(chosen, exact=True).wait_for(state="detached")
    assert not (runs_app.output / chosen).exists()
