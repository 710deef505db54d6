"""The event log under crashes, full disks and several writers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.core.events import EventLog, read_events


def clock() -> float:
    return 12.3456


def test_events_come_back_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl", clock)
    log.emit("step", step=1, loss=0.5)
    log.emit("warning", text="naïve\n\u2028 café 🎵")
    log.emit("step", step=2, loss=0.25)
    events = list(read_events(log.path))
    assert events[0] == {"time": 12.346, "kind": "step", "step": 1, "loss": 0.5}
    assert events[1]["text"] == "naïve\n\u2028 café 🎵"
    assert [event["step"] for event in read_events(log.path, "step")] == [1, 2]


def test_a_missing_log_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", clock)
    log.emit("step", loss=math.nan, per_timestep=[1.0, math.inf], nested={"a": (-math.inf, 2)})
    line = log.path.read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse)["loss"] is None
    assert next(read_events(log.path))["per_timestep"] == [1.0, None]
    assert next(read_events(log.path))["nested"] == {"a": [None, 2]}


def test_a_lone_surrogate_from_a_file_name_does_not_stop_the_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", clock)
    log.emit("warning", text="b\udcff.wav")
    assert next(read_events(log.path))["text"].startswith("b")


def test_a_log_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, clock)
    for step in range(3):
        log.emit("step", step=step, text="é")
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        assert [event["step"] for event in read_events(path)] == list(range(lines))
        EventLog(path, clock).emit("resumed")
        kinds = [event["kind"] for event in read_events(path)]
        assert kinds[-1] == "resumed"
        assert kinds[:-1].count("step") in (lines, lines + 1)  # one more where only the end of the line was cut


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-events.jsonl"
    path.write_bytes(data)
    assert all(isinstance(event, dict) for event in read_events(path))
    EventLog(path, clock).emit("last")
    assert list(read_events(path))[-1]["kind"] == "last"


WRITER = """
import sys
from pathlib import Path
from acestep.core.events import EventLog
log = EventLog(Path(sys.argv[1]))
for step in range(300):
    log.emit("step", writer=sys.argv[2], step=step, text="x" * 300)
"""


def test_several_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(path.read_text().splitlines()) == 900
    for name in "abc":
        steps = [event["step"] for event in read_events(path) if event["writer"] == name]
        assert steps == list(range(300))


def test_a_full_disk_is_a_user_error_and_the_log_goes_on_afterwards(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(150_000))
    log = EventLog(small_disk / "events.jsonl", clock)
    written = 0
    with pytest.raises(UserError, match="disk is full"):
        for step in range(1000):
            log.emit("step", step=step, text="x" * 1000)
            written += 1
    ballast.unlink()
    log.emit("step", step=written)
    assert [event["step"] for event in read_events(log.path)] == list(range(written + 1))


def test_a_log_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="something else has that name"):
        EventLog(tmp_path / "file" / "events.jsonl")
