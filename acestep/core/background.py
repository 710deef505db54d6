"""Heavy work in the background of a program that goes on answering: one piece at a time, seen alike by everyone.

A page, or several, only look at `current`. Closing them changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job, Kind, Stage, heavy_job

_log = logging.getLogger(__name__)

LINES_KEPT = 400
"""Lines of what a piece of work said that are kept for the screens."""

State = Literal["running", "finished", "stopped", "failed"]


@dataclass
class Work:
    """One piece of background work and how it went. `subject` is the folder it is about, such as that of a run."""

    kind: str
    title: str
    subject: Path | None
    job: Job
    started: float
    state: State = "running"
    ended: float | None = None
    result: Any = None
    problem: str = ""
    """Why it failed, in a sentence for users."""
    trace: str = ""
    """The traceback where the failure is a bug."""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def stage(self) -> Stage | None:
        """The stage the work is in, or was in last."""
        return self.job.stages[-1] if self.job.stages else None

    def hear(self, kind: Kind, what: Stage | str) -> None:
        """Listens to the job: keeps what it says."""
        if isinstance(what, str):
            self.lines.append(f"Warning: {what}" if kind == "warn" else what)
        elif kind == "end":
            self.lines.append(f"{what.name}: {what.progress}")


class Background:
    """Runs one piece of heavy work at a time in a thread, and remembers the last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: Work | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self.current is not None and self.current.running

    def start(
        self,
        kind: str,
        title: str,
        function: Callable[[Job], Any],
        subject: Path | None = None,
        light: bool = False,
    ) -> Work:
        """Begin work and return at once. Raises UserError while other work holds this program or this machine.

        `light` work, which hardly computes, does not need the machine: it runs beside heavy work of other programs.
        """
        with self._lock:
            if self.current and self.current.running:
                raise UserError(f"{self.current.title} is still running.", fix="Wait for it or stop it first.")
            work = Work(kind, title, subject, Job(clock=self.clock), self.clock())
            work.job.listen(work.hear)
            holding: Future[None] = Future()
            thread = threading.Thread(
                target=self._run, args=(work, function, holding, light), name=f"acestep-{kind}", daemon=True
            )
            thread.start()
            holding.result()  # or the reason why the machine is not to be had
            self.current, self._thread = work, thread
            return work

    def stop(self) -> None:
        """Ask the running work to stop at its next safe point."""
        if self.current and self.current.running:
            self.current.job.request_stop()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the running work; False when it still runs after `timeout_s`."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def _run(self, work: Work, function: Callable[[Job], Any], holding: Future[None], light: bool) -> None:
        try:
            with nullcontext() if light else heavy_job(work.title):
                holding.set_result(None)
                work.result = function(work.job)
            # after the machine is free again: who sees the end may begin the next piece at once
            work.state = "stopped" if work.job.stop_requested else "finished"
        except Stopped:
            work.state = "stopped"
        except UserError as error:
            work.problem, work.state = str(error), "failed"
            if not holding.done():
                holding.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a job: it goes to the log and to the page
            _log.exception("%s failed", work.title)
            work.problem, work.state = f"{type(error).__name__}: {error}", "failed"
            work.trace = traceback.format_exc()
            if not holding.done():
                holding.set_exception(error)
        finally:
            work.ended = self.clock()
