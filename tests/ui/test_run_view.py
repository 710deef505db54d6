"""A run is shown from its log alone, however it was written: in pieces, cut off, resumed, by another process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.core.errors import Stopped
from acestep.core.events import EventLog
from acestep.core.jobs import Job
from acestep.training.runs import LOCK_FILE
from acestep.ui.app import App
from acestep.ui.train_live import (
    Live,
    RunView,
    loss_html,
    preview_choices,
    previews_html,
    status_html,
)
from acestep.ui.train_watch import run_choices


def step(number: int, loss: float = 1.0, seconds: float = 2.0) -> dict[str, Any]:
    numbers = {"loss": loss, "learning_rate": 1e-4, "grad_norm": 0.5}
    return {"kind": "step", "step": number, "epoch": 1 + number // 4, "samples": 1, "seconds": seconds, **numbers}


def begin(kind: str, at: int, total: int) -> dict[str, Any]:
    return {"kind": kind, "step": at, "total_steps": total, "summary": [f"{total} steps"]}


RESUMED: list[dict[str, Any]] = [
    begin("start", 0, 8),
    {"kind": "validation", "step": 0, "loss": 2.0},
    *(step(number, 10.0 + number) for number in range(1, 7)),
    {"kind": "validation", "step": 4, "loss": 1.5},
    {"kind": "best", "step": 4, "loss": 1.5},
    {"kind": "preview", "step": 6, "path": "samples/a.wav", "caption": "c", "seed": 1, "strength": 1.0, "base": False},
    begin("resume", 3, 10),
    *(step(number, 20.0 + number) for number in range(4, 9)),
    {"kind": "validation", "step": 4, "loss": 1.4},
    {"kind": "warning", "step": 8, "text": "The memory runs short."},
    {"kind": "new kind of a later version", "step": 8},
]


def lines_of(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps({"time": 1.0, **event}).encode() + b"\n" for event in events)


def picture(view: RunView) -> Any:
    return vars(view.story), list(view.lines)


def test_what_is_done_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(lines_of(RESUMED))
    view = RunView(tmp_path)
    assert view.read()
    assert not view.read()
    assert [done.number for done in view.story.steps] == list(range(1, 9))
    assert [done.loss for done in view.story.steps] == [11, 12, 13, 24, 25, 26, 27, 28]
    assert view.story.validations == [(0, 2.0), (4, 1.4)]
    assert view.story.total_steps == 10
    assert view.remaining_s() == pytest.approx(4.0)
    assert view.story.previews == []  # of a step that is not done yet
    assert view.story.best is None
    assert any("memory runs short" in line for line in view.lines)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(lines_of(RESUMED))), max_size=6))
def test_reading_in_pieces_gives_the_same_picture(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder, whole = tmp_path_factory.mktemp("run"), lines_of(RESUMED)
    log = folder / "events.jsonl"
    view = RunView(folder)
    assert not view.read()
    for cut in [*sorted(cuts), len(whole)]:
        log.write_bytes(whole[:cut])
        view.read()
    at_once = RunView(folder)
    at_once.read()
    assert picture(view) == picture(at_once)


def test_broken_lines_are_passed_over_and_another_log_is_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    broken = b'{"kind": "step", "step": "x"}\n{"kind": "st\n[]\n\xff\xfe\nnull\n{"step": 1}\n'
    log.write_bytes(lines_of(RESUMED[:4]) + broken + lines_of([step(3)]))
    view = RunView(tmp_path)
    view.read()
    assert [done.number for done in view.story.steps] == [1, 2, 3]
    log.write_bytes(lines_of([begin("start", 0, 2), step(1)]))
    view.read()
    assert [done.number for done in view.story.steps] == [1]


def test_losses_that_are_no_numbers_leave_a_gap(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for event in (begin("start", 0, 3), step(1), step(2, float("nan")), step(3)):
        log.emit(**event)
    live = live_of(tmp_path)
    assert "Loss by step: each step 1 at 3" in loss_html(live)
    assert live.view().story.steps[1].loss is None  # type: ignore[union-attr]


def live_of(run: Path) -> Live:
    (run / "run.json").write_text('{"schema_version": 1}', encoding="utf-8")
    app = App(run.parent / "project", (run,)) if (run.parent / "project").is_dir() else _app(run)
    app.choose(run=str(run))
    return Live(app)


def _app(run: Path) -> App:
    project = run / "project"
    project.mkdir(exist_ok=True)
    return App(project, (run,))


def test_the_state_of_a_run_of_another_program(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_bytes(lines_of(RESUMED))
    live = live_of(tmp_path)
    assert "cut off. Resume it" in status_html(live)
    assert run_choices(live) == [(f"{tmp_path.name} (interrupted)", str(tmp_path))]
    before = live.sign()
    with FileLock(tmp_path / LOCK_FILE):
        assert live.sign() != before
        assert "running in another program" in status_html(live)
        assert run_choices(live) == [(f"{tmp_path.name} (running)", str(tmp_path))]
    ending = {"kind": "end", "state": "failed", "reason": "Traceback …\n  File x\nValueError: <no> way"}
    log.write_bytes(lines_of([*RESUMED, ending]))
    assert "The run failed: ValueError: &lt;no&gt; way" in status_html(live)
    assert run_choices(live) == [(f"{tmp_path.name} (failed)", str(tmp_path))]


def test_a_run_stopped_before_its_first_step_is_not_said_to_have_left_anything(tmp_path: Path) -> None:
    """Such a run takes its folder away again; nothing of it is to be gone on with or to be used."""
    live = live_of(tmp_path)
    app, run = live.app, live.app.output / "run"
    app.choose(run=str(run))

    def work(job: Job) -> None:
        EventLog(run / "events.jsonl").emit("start", step=0, total_steps=5)
        assert live.view() is not None
        shutil.rmtree(run)
        raise Stopped

    app.start_work("train", "Training", work, run)
    assert app.background.wait(20)
    html = status_html(live)
    assert "stopped before its first step" in html and "final" not in html and "Resume" not in html


def test_previews_stand_by_strength_the_base_first(tmp_path: Path) -> None:
    from acestep.audio.write import write_audio

    events = [begin("start", 0, 9), step(1), step(2)]
    for at, strength in ((1, 1.0), (2, 1.0), (2, 0.5), (2, None)):
        path = f"samples/step_{at}/{strength}.wav"
        write_audio(tmp_path / path, np.zeros(4800))
        facts = {"caption": "<b>calm</b>", "seed": 7, "strength": strength or 0.0, "base": strength is None}
        events.append({"kind": "preview", "step": at, "path": path, **facts})
    outside = {"caption": "c", "seed": 7, "strength": 2.0, "base": False, "path": "../../secret.wav"}
    events.append({"kind": "preview", "step": 2, **outside})
    (tmp_path / "events.jsonl").write_bytes(lines_of(events))
    live = live_of(tmp_path)
    html = previews_html(live)
    assert preview_choices(live) == [("newest", 0), ("step 2", 2), ("step 1", 1)]
    assert html.index("without adapter") < html.index("strength 0.5") < html.index("strength 1<")
    assert html.count("<audio") == 3
    assert "<b>calm" not in html
    assert "the file is gone" in html
    live.app.choose(preview_step=1)
    assert previews_html(live).count("<audio") == 1
