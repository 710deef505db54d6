"""Looking back at many runs: their summaries, read again only when they have changed; deleting one."""

from __future__ import annotations

import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from acestep.core.errors import Problem, UserError
from acestep.core.paths import TEMPORARY_PREFIX, disk_errors, give_name
from acestep.training.runs import RunFolder, RunSummary, is_running, summarise

Sign = Hashable
LOOK_AGAIN_S = 1.0
"""How long a look at all runs is good for: asking for each lock takes a while where there are many."""
GROWTH_STEPS = 50
"""A log that still grows counts as changed each time it is longer by one part in so many."""


def run_sign(path: Path) -> Sign:
    """Changes when the summary or the curves of the run in `path` would.

    While a run goes on its log is looked at anew only after it has grown by some percent, so that reading it all
    along costs no more than a few times its length.
    """
    running = is_running(path)
    record, log = _stat(path / "run.json"), _stat(path / "events.jsonl")
    return (running, record, round(GROWTH_STEPS * math.log(log[1] + 1)) if running else log)


def _stat(path: Path) -> tuple[int, int]:
    """Time of change in ns and size; zeros where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def run_paths(root: Path) -> list[Path]:
    """The folders directly in `root` that hold a run.json, readable or not."""
    # a name with a dot first is that of a run being deleted
    return sorted(path.parent for path in root.glob("*/run.json") if not path.parent.name.startswith("."))


class RunHistory:
    """The runs of a folder, each read again only when it has changed. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.summaries: list[RunSummary] = []
        """What was read last."""
        self._known: dict[Path, tuple[Sign, RunSummary]] = {}
        self._looked: tuple[float, Sign] | None = None
        self._clock = clock
        self._lock = threading.Lock()

    def sign(self, root: Path) -> Sign:
        """Changes when a run directly in `root` comes, goes or moves on. One look serves all who ask meanwhile."""
        with self._lock:
            if self._looked is None or self._clock() - self._looked[0] >= LOOK_AGAIN_S:
                self._looked = (self._clock(), tuple((str(path), run_sign(path)) for path in run_paths(root)))
            return self._looked[1]

    def read(self, root: Path) -> tuple[list[RunSummary], list[Problem]]:
        """The runs directly in `root`, newest first, and what is wrong with those that cannot be read."""
        summaries, problems = [], []
        with self._lock:
            for path in run_paths(root):
                try:
                    summaries.append(self._summary(path))
                except UserError as error:
                    problems.append(Problem(path.name, str(error)))
            self.summaries = sorted(summaries, key=lambda summary: (summary.created, summary.name), reverse=True)
            return self.summaries, problems

    def _summary(self, path: Path) -> RunSummary:
        sign = run_sign(path)
        known = self._known.get(path)
        if known is None or known[0] != sign:
            known = self._known[path] = (sign, summarise(RunFolder.open(path)))
        return known[1]


def delete_run(path: Path, root: Path) -> None:
    """Delete a run with everything in its folder. It must lie below `root`, hold a run.json, and not be running.

    The folder is renamed first, so that a run is there whole or not at all.
    """
    resolved, root = path.resolve(), root.resolve()
    if path.is_symlink() or resolved == root or not resolved.is_relative_to(root):
        raise UserError(f"{path} is no run folder in {root}.", fix="Only runs in that folder can be deleted.")
    if not (resolved / "run.json").is_file():
        raise UserError(f"{path} is not a run folder: it holds no run.json.", fix="Choose a run.")
    if is_running(resolved):
        raise UserError(f"The run {resolved.name} is running.", fix="Stop it first.")
    doomed = resolved.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}")
    with disk_errors(resolved):
        give_name(resolved, doomed)
        shutil.rmtree(doomed)
