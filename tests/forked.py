"""Processes of their own that have their imports behind them.

A new interpreter takes eight seconds to import torch, diffusers and peft, and most tests of a whole process need it for
one. On Linux each test process has a server that imports them once; what is started here is forked from it. It has an
identity, arguments, environment, output and end of its own, as a new interpreter, which takes its place elsewhere.
Tests of what is imported, and one of each kind of starting, stay with new interpreters.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from types import SimpleNamespace

CAN_FORK = sys.platform == "linux"
_IMPORTED = ("acestep.training.train", "acestep.adapters.attaching", "acestep.preprocess.work", "acestep.generate")


def context() -> BaseContext:
    """Makes processes like the one named "spawn", but forked from the server."""
    found = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
    if CAN_FORK:
        found.set_forkserver_preload([*_IMPORTED, "lightning_fabric", "peft", "lycoris", "pytest"])
    return found


class Forked:
    """A process as tests know it from `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: str) -> None:
        reading, writing = multiprocessing.Pipe(duplex=False)
        what = (list(command), dict(env), str(Path.cwd()), stdout, writing)
        self._process = context().Process(target=_begin, args=what, daemon=True)
        self._process.start()
        writing.close()
        self.stderr = os.fdopen(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode


def start(
    command: Sequence[str], env: Mapping[str, str] = os.environ, stdout: str = os.devnull
) -> Forked | subprocess.Popen[str]:
    """Start a command that begins with `sys.executable`. What it says can be read, what it prints goes into a file."""
    if CAN_FORK:
        return Forked(command, env, stdout)
    with open(stdout, "wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, env=env, encoding="utf-8")


def run(command: Sequence[str], env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Run a command that begins with `sys.executable` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "stdout"
        process = start(command, env, str(printed))
        with process.stderr as said:
            stderr = said.read()
        return subprocess.CompletedProcess(command, process.wait(), printed.read_text(encoding="utf-8"), stderr)


# in the new process -------------------------------------------------------------------------------------------------


class Spare:
    """A process that waits until Lightning starts the second one of a run, and then is that one."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        reading, self._writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(reading)
            return
        os.close(self._writing)
        with os.fdopen(reading, "rb") as given:
            task = given.read()
        if task:
            _become(*json.loads(task))
        sys.exit()

    def __call__(self, command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> Spare:
        os.write(self._writing, json.dumps([list(command), dict(env)]).encode())
        os.close(self._writing)
        return self

    def poll(self) -> None:
        if self.returncode is None and (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(done[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _begin(command: Sequence[str], env: Mapping[str, str], folder: str, stdout: str, stderr: Connection) -> None:
    from lightning_fabric.strategies.launchers import subprocess_script

    os.chdir(folder)
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(stderr.fileno(), 2)
    stderr.close()
    sys.stdout, sys.stderr = text_file(1, env), text_file(2, env)
    subprocess_script.subprocess = SimpleNamespace(Popen=Spare())
    _become(command, env)


def text_file(number: int, env: Mapping[str, str]) -> io.TextIOWrapper:
    """Standard output or error as a new interpreter has it; those of the server know the files that were there before.

    How they are buffered decides what a signal meets that arrives while a line is written.
    """
    unbuffered = bool(env.get("PYTHONUNBUFFERED"))
    file = os.fdopen(number, "wb", 0 if unbuffered else -1, closefd=False)
    return io.TextIOWrapper(file, write_through=unbuffered, line_buffering=number == 2 and not unbuffered)


def _become(command: Sequence[str], env: Mapping[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
    kind, *rest = command[1:]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")
