"""Long work: how it reports progress, how it is asked to stop, and that only one heavy job runs at a time.

A function that takes long receives a `Job`. It opens stages, advances them, and asks `check_stop` where
stopping is safe. Whoever started it (terminal, page, test) passes a listener and may call `request_stop`, or
`request` for what the work takes beside its plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from acestep.core.errors import Stopped, UserError
from acestep.core.paths import disk_errors
from acestep.core.words import counted

_RATE_WINDOW = 50
"""Units over which the rate of a stage is measured."""


@dataclass
class Stage:
    """One countable part of a job, e.g. "encode audio", 12 of 100 songs."""

    name: str
    total: int
    unit: str
    started: float
    done: int = 0
    already: int = 0
    """Units done before this stage began, e.g. by the run that is resumed; they say nothing about the rate."""
    note: str = ""
    ended: float | None = None
    _job: Job | None = field(default=None, repr=False)
    _marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW), repr=False)

    @property
    def progress(self) -> str:
        """How far it is, such as "3 of 8 songs"."""
        return f"{self.done} of {counted(self.total, self.unit)}".rstrip()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self.note = note
        if self._job is not None:
            self._marks.append((self._job.clock(), self.done))
            self._job._tell("progress", self)

    def elapsed_s(self, now: float) -> float:
        return max(0.0, (self.ended if self.ended is not None else now) - self.started)

    def remaining_s(self, now: float) -> float | None:
        """Seconds left at the rate of the last units, or None before the first is done.

        The first unit counts only while it is the only one: it holds the warm-up.
        """
        since, before = self._marks[0] if len(self._marks) > 1 else (self.started, self.already)
        fresh = self.done - before
        if fresh <= 0 or self.total <= 0:
            return None
        return max(0.0, ((self.ended or now) - since) / fresh * (self.total - self.done))


Kind = Literal["start", "progress", "end", "say", "warn"]
Listener = Callable[[Kind, Stage | str], None]

Request = Literal["preview", "save"]
"""What can be asked of running work besides stopping."""


class Job:
    """What a piece of long work gets to talk to whoever started it. Safe to share between threads."""

    def __init__(self, listener: Listener | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages: list[Stage] = []
        self.warnings: list[str] = []
        self.kept: list[Path] = []
        """Files and folders that hold what is finished, for whoever stops the work; they need not be there yet."""
        self._listener = listener
        self._stop = threading.Event()
        self._requests: set[Request] = set()
        self._requests_lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Tell `listener` from now on, instead of the one before."""
        self._listener = listener

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def request_stop(self) -> None:
        """Ask the work to stop at its next safe point. What is finished is kept."""
        self._stop.set()

    def check_stop(self) -> None:
        """Raise Stopped if the user asked to stop."""
        if self.stop_requested:
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep so long, but no longer than until a stop is asked for."""
        self._stop.wait(max(0.0, seconds))

    def request(self, name: Request) -> None:
        """Ask the work for something beside its plan. Asking twice before it is taken counts once."""
        with self._requests_lock:
            self._requests.add(name)

    def take_request(self, name: Request) -> bool:
        """Whether `name` was asked for since it was last taken. Work calls this where it can fulfil it."""
        with self._requests_lock:
            asked = name in self._requests
            self._requests.discard(name)
        return asked

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str = "", already: int = 0) -> Iterator[Stage]:
        stage = Stage(name, total, unit, started=self.clock(), done=already, already=already, _job=self)
        self.stages.append(stage)
        self._tell("start", stage)
        try:
            yield stage
        finally:
            stage.ended = self.clock()
            self._tell("end", stage)

    def say(self, text: str) -> None:
        self._tell("say", text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._tell("warn", text)

    def _tell(self, kind: Kind, what: Stage | str) -> None:
        if self._listener is not None:
            self._listener(kind, what)


def is_main_process() -> bool:
    """Whether this is the process the user started, and not a helper of a run on several devices."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK"))


def state_folder() -> Path:
    """Where this machine keeps locks and remembered folders; ACESTEP_STATE_DIR moves it."""
    import platformdirs

    chosen = os.environ.get("ACESTEP_STATE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir("acestep-lora-trainer"))


_HOLDER_VARIABLE = "ACESTEP_JOB_OF"
_held_by_this_process = threading.RLock()
_depth = 0


@contextlib.contextmanager
def heavy_job(title: str) -> Iterator[None]:
    """Hold the machine for one heavy job; a second process gets a UserError that names the first.

    The operating system drops the lock with the process that held it, so a crash never blocks the next job.
    Nested use within one job (the demo runs preprocess, then train) is allowed; other threads are refused. The
    helper processes of a run on several devices belong to the job of the process that started them.
    """
    global _depth
    if not is_main_process():
        yield
        return
    if not _held_by_this_process.acquire(blocking=False):
        raise UserError("Another job is running in this program.", fix="Wait for it or stop it first.")
    try:
        with contextlib.nullcontext() if _depth else _machine_held(title):
            _depth += 1
            try:
                yield
            finally:
                _depth -= 1
    finally:
        _held_by_this_process.release()


@contextlib.contextmanager
def _machine_held(title: str) -> Iterator[None]:
    """No other process of this user holds the machine, except one that started this program as a part of its job."""
    lock, note = FileLock(state_folder() / "heavy-job.lock"), _note_file()
    try:
        with disk_errors(note.parent):
            note.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as error:
        holder = _holder()
        if holder is not None and str(holder.pid) == os.environ.get(_HOLDER_VARIABLE):
            yield
            return
        raise UserError(
            f"Another job is running on this machine{f' ({holder})' if holder else ''}.",
            fix="Wait for it or stop it first.",
        ) from error
    try:
        facts = asdict(_Holder(title, os.getpid(), time.time()))
        with contextlib.suppress(OSError):  # the note only decorates the message a second job gets
            note.write_text(json.dumps(facts), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()
        lock.release()


@dataclass(frozen=True)
class _Holder:
    """The job that holds the machine, as it noted itself beside the lock."""

    title: str
    pid: int
    started: float

    def __str__(self) -> str:
        minutes = max(0, int((time.time() - self.started) / 60))
        return f'"{self.title}", process {self.pid}, for {minutes} min'


def _note_file() -> Path:
    return state_folder() / "heavy-job.json"


def _holder() -> _Holder | None:
    """What the note says; None where there is none, or one that is cut off."""
    try:
        facts = json.loads(_note_file().read_text(encoding="utf-8"))
        return _Holder(str(facts["title"]), int(facts["pid"]), float(facts["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def job_elsewhere() -> str:
    """Title of the heavy job that another program of this user runs on this machine; empty where there is none."""
    import psutil

    holder = _holder()
    if holder is None or holder.pid == os.getpid():
        return ""
    try:
        alive = psutil.Process(holder.pid).create_time() <= holder.started
    except (psutil.Error, ValueError):  # the job died, or the note was damaged
        return ""
    return holder.title if alive else ""


def as_part_of_this_job() -> dict[str, str]:
    """Environment for a program started as a part of the heavy job that this process holds."""
    return {**os.environ, _HOLDER_VARIABLE: str(os.getpid())}
