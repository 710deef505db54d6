"""Programs that begin and end together: by a signal, when one ends, and when their starter is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acestep.core.together import run_together

ROOT = Path(__file__).resolve().parents[2]

WAITS = """
import os, sys, threading
from pathlib import Path
from acestep.core.together import when_the_starter_ends
ended = threading.Event()
when_the_starter_ends(ended.set)
os.write(1, b"here\\n")  # at once and whole: two programs share this side
assert ended.wait(60)
Path(sys.argv[1]).write_text("brought to its end")
"""
STARTS = "import sys; from acestep.core.together import run_together; sys.exit(run_together([{0!r}, {1!r}]))"


def waiting(note: Path) -> list[str]:
    """A program that waits for its end and then writes `note`."""
    return [sys.executable, "-c", WAITS, str(note)]


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("os.kill(os.getpid(), 9)", 1)])
def test_when_one_ends_the_other_is_brought_to_its_end(ending: str, code: int, tmp_path: Path) -> None:
    note = tmp_path / "note"
    short = [sys.executable, "-c", f"import os, sys; {ending}"]
    assert run_together([waiting(note), short]) == code
    assert note.read_text() == "brought to its end"


def test_a_program_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    deaf = [sys.executable, "-c", "import threading; threading.Event().wait()"]
    assert run_together([deaf, [sys.executable, "-c", ""]], grace_s=0.1) == 0


def test_what_they_are_told_in_secret_reaches_them(tmp_path: Path) -> None:
    program = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['WORD'])"
    run_together([[sys.executable, "-c", program, str(tmp_path / "note")]], {"WORD": "sesame"})
    assert (tmp_path / "note").read_text() == "sesame" and "WORD" not in os.environ


@pytest.mark.skipif(sys.platform == "win32", reason="signals between processes are POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_both_end_with_their_starter_however_it_ends(number: signal.Signals, tmp_path: Path) -> None:
    notes = [tmp_path / "one", tmp_path / "two"]
    code = STARTS.format(*(waiting(note) for note in notes))
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert [starter.stdout.readline() for _ in notes] == ["here\n", "here\n"]
    starter.send_signal(number)
    assert starter.wait(60) == (-number if number == signal.SIGKILL else 0)
    assert starter.stdout.read() == ""  # its end: no program holds the other side of it any more
    assert [note.read_text() for note in notes] == ["brought to its end"] * 2


STARTS_ONE = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
input()
"""

ENDS_WITH_ITS_PARENT = """
import threading
from acestep.core.together import end_with_parent
end_with_parent()
print("here", flush=True)
threading.Event().wait()
"""


def test_a_helper_that_waits_for_ever_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", STARTS_ONE, ENDS_WITH_ITS_PARENT]
    parent = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "here\n"
    parent.kill()
    assert parent.stdout.read() == ""  # its end: the helper holds the other side of it no more
    parent.wait()
    assert parent.stdin is not None
    parent.stdin.close()
