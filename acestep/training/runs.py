"""Run folders: everything needed to explain a run or go on with it. Screens and commands only read them.

run.json        settings, versions, what it was trained on
events.jsonl    every step, validation, checkpoint, warning and the end with its reason
checkpoints/    step_000120/ …
best/ final/    adapters ready to use, each with training.json (which step it is, and why) and a card
samples/        previews: step_000120/ …
request-*       what another process asks of the run, see requests.py
tensorboard/
"""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from acestep import __version__
from acestep.core.errors import UserError
from acestep.core.events import EventLog, read_events
from acestep.core.paths import disk_errors, existing_folder, output_folder, read_json, safe_name, write_json
from acestep.training.story import UNFINISHED, RunStory

SCHEMA_VERSION = 1
LOCK_FILE = ".run.lock"
CLAIM_WAIT_S = 2.0
"""How long a run waits for its lock: whoever asks whether it goes on holds it for a moment."""
_RECORDED_PACKAGES = ("torch", "diffusers", "transformers", "peft", "lycoris-lora", "lightning-fabric", "safetensors")


_asking = threading.Lock()
"""Two threads that ask at once would each take the other for the run."""


class RunFolder:
    """A run on disk."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.final = path / "final"
        self.samples = path / "samples"
        self._lock: FileLock | None = None

    def claim(self) -> None:
        """Keep every other process from training in this folder until `release`, or until this process ends."""
        lock = FileLock(self.path / LOCK_FILE)
        try:
            with disk_errors(self.path):
                lock.acquire(timeout=CLAIM_WAIT_S)
        except Timeout as error:
            raise UserError(
                f"Another process is training in {self.path}.", fix="Wait for it, or choose another folder."
            ) from error
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def is_running(self) -> bool:
        """Whether a process trains in this folder now."""
        return is_running(self.path)

    def discard(self) -> None:
        """Take back a run that was refused before its first step. Other files in the folder stay."""
        self.release()
        for name in ("run.json", "events.jsonl", LOCK_FILE):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of the user's is in it
            self.path.rmdir()

    @classmethod
    def create(cls, path: Path, record: dict[str, Any]) -> RunFolder:
        """Make the folder and write run.json. A folder that already holds a run is refused."""
        path = output_folder(path, "the run folder")
        run = cls(path, {})
        run.claim()  # before looking: two processes may look at the same moment
        if (path / "run.json").exists():
            run.release()
            if any(run.checkpoints.glob("step_*")):
                raise UserError(
                    f"{path} already holds a run.", fix=f"Choose another folder, or go on with it: --resume {path}"
                )
            raise UserError(
                f"{path} already holds a run, which ended before its first checkpoint.",
                fix="Choose another folder, or delete this one.",
            )
        run.record = {
            "schema_version": SCHEMA_VERSION,
            "program_version": __version__,
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _RECORDED_PACKAGES}},
            **record,
        }
        write_json(path / "run.json", run.record)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run; `path` may be the run folder or one of its checkpoints."""
        path = existing_folder(path, "the run folder")
        for folder in (path, path.parent.parent):
            if (folder / "run.json").is_file():
                record = read_json(folder / "run.json", "the run's record")
                if record.get("schema_version") != SCHEMA_VERSION:
                    raise UserError(f"{folder} was written by another version of this program.", fix="Start a new run.")
                for part in ("settings", "model", "tensors", "data", "plan"):
                    if not isinstance(record.get(part, {}), dict):
                        raise _damaged(folder / "run.json", f'"{part}" is no object')
                return cls(folder, record)
        raise UserError(f"{path} is not a run folder: it holds no run.json.", fix="Choose the folder given as --out.")

    def origin(self, part: Literal["model", "tensors"]) -> str:
        """Where the model or the tensor folder lay that the run began with."""
        path = self.record.get(part, {}).get("path")
        if not isinstance(path, str):
            raise UserError(
                f"{self.path / 'run.json'} does not say where its {part} lay.",
                fix=f"Name it on the command line with --{part}.",
            )
        return path

    def amend(self, **values: Any) -> None:
        """Change entries of run.json."""
        self.record |= values
        write_json(self.path / "run.json", self.record)

    def event_log(self) -> EventLog:
        return EventLog(self.path / "events.jsonl")

    def events(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        yield from read_events(self.path / "events.jsonl", kind)

    def story(self) -> RunStory:
        """What the log tells so far. Raises UserError when it cannot be read, or says what no run writes."""
        log = self.path / "events.jsonl"
        try:
            return RunStory(self.events())
        except OSError as error:
            raise UserError(f"{log} cannot be read ({error.strerror}).", fix="Check its permissions.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(log, repr(error)) from error


def _damaged(file: Path, why: str) -> UserError:
    return UserError(f"{file} was damaged ({why}).", fix="Delete the run, or take the file from a copy of it.")


def is_running(folder: Path) -> bool:
    """Whether a process trains in a run folder now. Nothing is written to find out."""
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with _asking, FileLock(folder / LOCK_FILE).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the folder may only be read: then nobody here trains in it
        return False


def new_run_path(root: Path, name: str) -> Path:
    """A folder name for a new run under `root`: date, time and name, never one that exists."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{safe_name(name, 'run')}"
    path, number = root / stem, 2
    while path.exists():
        path, number = root / f"{stem}_{number}", number + 1
    return path


@dataclass(frozen=True)
class RunSummary:
    """One run in a line, read from its record and its events."""

    path: str
    name: str
    created: str
    state: str
    step: int
    total_steps: int
    adapter: str
    loss: float | None
    first_validation: float | None
    best_validation: float | None
    best_step: int | None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(run: RunFolder) -> RunSummary:
    """Read a run's record and events. A run without an end event is running or was interrupted."""
    story = run.story()
    settings = run.record.get("settings", {})
    best = min(story.validations, key=lambda point: (point[1], point[0]), default=None)
    unfinished = "running" if run.is_running() else "interrupted"
    planned = run.record.get("plan", {}).get("total_steps", 0)
    if not isinstance(planned, int):
        raise _damaged(run.path / "run.json", '"total_steps" is no number')
    return RunSummary(
        path=str(run.path),
        name=run.path.name,
        created=str(run.record.get("created", "")),
        state=unfinished if story.state in ("", UNFINISHED) else story.state,
        step=story.step,
        total_steps=story.total_steps or planned,
        adapter=str(settings.get("adapter", "")),
        loss=story.steps[-1].loss if story.steps else None,
        first_validation=story.validations[0][1] if story.validations else None,
        best_validation=best[1] if best else None,
        best_step=best[0] if best else None,
        settings=settings,
    )


def compare(first: RunSummary, second: RunSummary) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ."""
    names = [*first.settings, *(name for name in second.settings if name not in first.settings)]
    pairs = {name: (first.settings.get(name), second.settings.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
