"""Heavy work in the background: one at a time, stoppable, and its end is known in words."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from acestep.core.background import Background
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job, heavy_job

PATIENCE_S = 30.0


def test_a_result_is_kept_with_what_was_said() -> None:
    background = Background()

    def count(job: Job) -> int:
        job.say("counting")
        with job.stage("count", 3, "songs") as stage:
            for _ in range(3):
                stage.advance()
        job.warn("that was all")
        return 3

    work = background.start("count", "Counting", count, Path("/music"))
    assert background.wait(PATIENCE_S)
    assert (work.state, work.result, work.problem, work.subject) == ("finished", 3, "", Path("/music"))
    assert list(work.lines) == ["counting", "count: 3 of 3 songs", "Warning: that was all"]
    assert background.current is work and not background.busy


def test_only_one_piece_of_work_at_a_time() -> None:
    background, go_on = Background(), threading.Event()
    first = background.start("wait", "Encoding my songs", lambda job: go_on.wait(PATIENCE_S))
    with pytest.raises(UserError, match="Encoding my songs is still running"):
        background.start("wait", "Another", lambda job: None)
    assert background.current is first
    go_on.set()
    assert background.wait(PATIENCE_S)
    assert background.start("wait", "Another", lambda job: None).kind == "wait"
    assert background.wait(PATIENCE_S)


def test_a_machine_that_is_busy_elsewhere_is_respected() -> None:
    background = Background()
    with heavy_job("train in a terminal"), pytest.raises(UserError, match="Another job is running"):
        background.start("wait", "Another", lambda job: None)
    assert background.current is None and not background.busy


def test_a_stop_is_no_failure() -> None:
    background, begun = Background(), threading.Event()

    def until_stopped(job: Job) -> None:
        begun.set()
        while True:
            job.check_stop()

    work = background.start("wait", "Waiting", until_stopped)
    assert begun.wait(PATIENCE_S)
    background.stop()
    assert background.wait(PATIENCE_S)
    assert (work.state, work.problem) == ("stopped", "")


def test_an_error_of_the_user_is_told_in_its_words_and_a_bug_with_its_traceback() -> None:
    background = Background()

    def refuse(job: Job) -> None:
        raise UserError("song.wav is empty.", fix="Remove it.")

    def break_down(job: Job) -> None:
        raise KeyError("latents")

    work = background.start("wait", "Waiting", refuse)
    assert background.wait(PATIENCE_S)
    assert (work.state, work.problem, work.trace) == ("failed", "song.wav is empty. Remove it.", "")
    work = background.start("wait", "Waiting", break_down)
    assert background.wait(PATIENCE_S)
    assert work.state == "failed" and "KeyError" in work.problem and "break_down" in work.trace


def test_work_that_raises_stopped_by_itself_is_stopped() -> None:
    background = Background()

    def give_up(job: Job) -> None:
        raise Stopped

    work = background.start("wait", "Waiting", give_up)
    assert background.wait(PATIENCE_S) and work.state == "stopped"
