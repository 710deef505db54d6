"""A signal may come at any moment, also while a line is being written; a program that asked for JSON is told of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep import cli
from acestep.cli import main
from acestep.core.jobs import Job, Stage

TALKING = """
import sys
from acestep.cli import stop_signals
from acestep.cli.terminal import TerminalListener
from acestep.core.jobs import Job

job = Job(TerminalListener())
with stop_signals(job):
    while not job.stop_requested:
        job.say("step 1, loss 1.0, rate 3e-3, gradient 2.1, 0.02 s")
sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals between processes are POSIX")
def test_a_signal_in_the_middle_of_a_line_asks_to_stop() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", TALKING], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait() == 130, rest[-500:]
    assert "Stopping at the next safe point" in rest


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    for number in (1, 2):
        soundfile.write(folder / f"{number}.wav", 0.1 * number * np.sin(np.arange(100_000) * 0.05), 48_000)
        (folder / f"{number}.caption.txt").write_text("a tone")
    return folder


def stop_within(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every command is asked to stop when the first part of that stage is done."""

    def make(listener: Any) -> Job:
        def listen(kind: str, what: Stage | str) -> None:
            if kind == "progress" and isinstance(what, Stage) and what.name == stage:
                job.request_stop()

        job = Job(listen)
        return job

    monkeypatch.setattr(cli, "Job", make)


def printed_when_stopped(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 130
    return json.loads(capsys.readouterr().out)


def test_a_stopped_command_says_so_as_json_and_where_its_work_is(
    songs: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_within("scan songs", monkeypatch)
    assert printed_when_stopped(["dataset", str(songs)], capsys) == {
        "stopped": True, "message": cli.STOPPED, "kept": [],
    }  # fmt: skip
    stop_within("label with analysis", monkeypatch)
    who = ["--metadata-by", "analysis", "--caption-by", "", "--lyrics-by", ""]
    labelled = printed_when_stopped(["caption", str(songs), *who], capsys)
    assert labelled["stopped"] is True and labelled["songs"] == 2 and labelled["kept"] == [str(songs)]
    tensors = songs.parent / "tensors"
    stop_within("encode songs", monkeypatch)
    encoded = ["preprocess", str(songs), "--model", str(demo_checkpoint), "--out", str(tensors), "--device", "cpu"]
    assert printed_when_stopped(encoded, capsys)["kept"] == [str(tensors)]
    assert len(json.loads((tensors / "index.json").read_text())["songs"]) == 1


def test_a_command_that_is_ended_at_once_says_so_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    assert cli.run(SimpleNamespace(run=interrupted), None, as_json=True) == 130  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out) == {"stopped": True, "message": cli.ENDED, "kept": []}
    monkeypatch.setattr(cli, "parse_options", interrupted)  # it takes a second, in which a key can be pressed
    assert printed_when_stopped(["doctor"], capsys)["message"] == cli.ENDED
    assert main(["doctor"]) == 130 and capsys.readouterr().out == ""
