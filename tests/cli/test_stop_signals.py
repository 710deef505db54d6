"""A signal may come at any moment, also while a line is being written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
