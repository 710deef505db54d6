"""Progress, stop, and one heavy job at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job, Stage, as_part_of_this_job, heavy_job, state_folder


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_tells_elapsed_and_remaining_time() -> None:
    clock = Clock()
    job = Job(clock=clock)
    with job.stage("encode", total=10, unit="songs") as stage:
        assert stage.remaining_s(clock.now) is None
        clock.now += 6
        stage.advance(2)
        assert stage.remaining_s(clock.now) == pytest.approx(3 * 8)
        stage.advance(8)
        assert stage.remaining_s(clock.now) == 0
    clock.now += 50
    assert stage.elapsed_s(clock.now) == 6
    assert job.stages == [stage]


def test_the_warm_up_of_a_stage_does_not_spoil_its_estimate() -> None:
    clock = Clock()
    with Job(clock=clock).stage("train", total=100, unit="steps") as stage:
        for seconds in (60, 1, 1, 1):
            clock.now += seconds
            stage.advance()
        assert stage.remaining_s(clock.now) == pytest.approx(96)
        for _ in range(60):
            clock.now += 2
            stage.advance()
        assert stage.remaining_s(clock.now) == pytest.approx(2 * 36)


def test_a_stage_of_unknown_length_has_no_remaining_time() -> None:
    stage = Stage("scan", total=0, unit="files", started=0)
    stage.advance()
    assert stage.remaining_s(5.0) is None


def test_work_done_before_a_stage_began_says_nothing_about_its_rate() -> None:
    stage = Stage("train", total=100, unit="steps", started=0, done=90, already=90)
    assert stage.remaining_s(5.0) is None
    stage.advance(2)
    assert stage.remaining_s(4.0) == pytest.approx(2 * 8)


def test_listeners_hear_everything_in_order() -> None:
    heard: list[tuple[str, str]] = []
    job = Job(lambda kind, what: heard.append((kind, what.note if isinstance(what, Stage) else what)))
    with job.stage("train", 2, "steps") as stage:
        stage.advance(note="first")
        job.say("hello")
        job.warn("careful")
    assert heard == [("start", ""), ("progress", "first"), ("say", "hello"), ("warn", "careful"), ("end", "first")]
    assert job.warnings == ["careful"]


def test_a_stop_is_taken_at_the_next_safe_point_and_ends_the_stage() -> None:
    job = Job(clock=Clock())
    job.check_stop()
    threading.Thread(target=job.request_stop).start()
    with pytest.raises(Stopped), job.stage("train", 10) as stage:
        while True:
            job.check_stop()
            stage.advance()
    assert job.stop_requested
    assert stage.ended is not None


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


HOLDER = """
import sys
from acestep.core.jobs import heavy_job
with heavy_job("train my_style"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the machine until its input ends."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline().strip() == b"held"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()
    child.stdin.close()


def test_state_folder_can_be_moved(state: Path) -> None:
    assert state_folder() == state


def test_a_second_process_is_told_who_holds_the_machine(holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(UserError, match=rf'"train my_style", process {holder.pid}, for 0 min'), heavy_job("second"):
        raise AssertionError("two heavy jobs at once")


def test_a_program_started_by_a_job_is_a_part_of_it(state: Path) -> None:
    def run(environment: dict[str, str]) -> int:
        command = [sys.executable, "-c", HOLDER]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment).returncode

    part = as_part_of_this_job()
    with heavy_job("train"):
        assert run(part) == 0
        assert run(dict(os.environ)) == 1
    assert run(part) == 0  # and holds the machine itself where nobody does


def test_the_machine_is_free_after_a_job_ends(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait() == 0
    with heavy_job("second"):
        assert state_folder().is_dir()


def test_a_killed_holder_does_not_block(holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    holder.wait()
    with heavy_job("second"), heavy_job("nested part"):
        assert (state_folder() / "heavy-job.json").is_file()


def test_a_damaged_note_does_not_hide_the_message(holder: subprocess.Popen[bytes]) -> None:
    (state_folder() / "heavy-job.json").write_text('{"title": ')
    with pytest.raises(UserError, match=r"Another job is running on this machine\."), heavy_job("second"):
        raise AssertionError("two heavy jobs at once")


def test_nested_use_keeps_the_lock_until_the_outermost_end(state: Path) -> None:
    with heavy_job("demo"):
        with heavy_job("preprocess"):
            pass
        child = subprocess.run([sys.executable, "-c", HOLDER], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert child.returncode != 0
        assert '("demo", process' in child.stderr
    child = subprocess.run([sys.executable, "-c", HOLDER], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_another_thread_is_refused_and_can_go_on_later(state: Path) -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            with heavy_job("from a thread"):
                outcomes.append("ran")
        except UserError as error:
            outcomes.append(str(error))

    def in_thread() -> None:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    with heavy_job("first"):
        in_thread()
    in_thread()
    assert outcomes == ["Another job is running in this program. Wait for it or stop it first.", "ran"]


def test_an_error_in_the_job_frees_the_machine(state: Path) -> None:
    with pytest.raises(ZeroDivisionError), heavy_job("first"):
        raise ZeroDivisionError
    child = subprocess.run([sys.executable, "-c", HOLDER], stdin=subprocess.DEVNULL, capture_output=True)
    assert child.returncode == 0


def test_a_state_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="something else has that name"), heavy_job("first"):
        raise AssertionError("ran without a lock")
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "state"))
    with heavy_job("second"):
        assert (tmp_path / "state" / "heavy-job.lock").exists()
