"""The trainer as users start it: a server process of its own, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pages import free_port

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    """One project folder and the server on it. A server started again listens on the same port."""

    project: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start it, and return when it has said that it can be reached."""
        command = [sys.executable, "-u", "launch.py", "--no-browser", "--port", str(self.port)]
        self.project.mkdir(parents=True, exist_ok=True)
        with open(self.project / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [*command, "--project", str(self.project), *self.options],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert self.address.rstrip("/") in said, (said, (self.project / "server.log").read_text())

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate()
            self.process = None
