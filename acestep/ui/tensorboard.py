"""TensorBoard beside the app: started for a run on this computer alone, ended with the app."""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from acestep.core.errors import UserError
from acestep.ui.app import App

LOOPBACK = "127.0.0.1"
START_WITHIN_S = 60.0


class TensorBoards:
    """At most one TensorBoard at a time, for one run."""

    def __init__(self, app: App, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._shown: tuple[Path, str] | None = None
        self._lock = threading.RLock()
        atexit.register(self.close)

    def show(self, run: Path) -> str:
        """The address of a TensorBoard for the run folder, started where none is.

        Raises UserError where others use the app, since TensorBoard asks nobody for a password.
        """
        if self._app.public:
            raise UserError(
                "TensorBoard has no password, so it is not opened while others can reach this app.",
                fix=f"Run on this computer: tensorboard --logdir {run}",
            )
        if not (run / "tensorboard").is_dir():
            raise UserError(f"{run.name} has no TensorBoard files.", fix="Switch on tensorboard in the settings.")
        with self._lock:  # of two pages that ask at once, the second is shown what the first has started
            running = self._process is not None and self._process.poll() is None
            if not (running and self._shown and self._shown[0] == run):
                self.close()
                self._shown = (run, self._start(run / "tensorboard"))
            return self._shown[1]

    def close(self) -> None:
        """End it, if it runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                self._process.wait()
            self._process = self._shown = None

    def _start(self, logs: Path) -> str:
        """Start one and return its address when it answers."""
        port = _free_port()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", LOOPBACK]
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [*command, "--port", str(port)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
            )
            if not self._answers(self._process, port):
                said.seek(0)
                words = said.read().decode("utf-8", errors="replace")
                self.close()
                raise UserError("TensorBoard does not start.", fix="Read what it said.", detail=words)
        return f"http://{LOOPBACK}:{port}/"

    def _answers(self, process: subprocess.Popen[bytes], port: int) -> bool:
        until = self._clock() + START_WITHIN_S
        while self._clock() < until:
            try:
                process.wait(0.2)
                return False
            except subprocess.TimeoutExpired:
                pass  # it lives; does it listen?
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, port)) == 0:
                    return True
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
