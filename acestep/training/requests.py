"""What another process asks of a run: empty files in its folder, honoured and removed between two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import write_text
from acestep.training.runs import RunFolder, summarise

RunRequest = Literal["preview", "save", "stop"]

SHORTEST_INTERVAL_S = 1.0
"""The folder is looked at no more often than this: on a network disk a look takes long."""


def request_file(folder: Path, name: RunRequest) -> Path:
    """The file that asks the run in `folder` for something."""
    return folder / f"request-{name}"


def ask(run: RunFolder, name: RunRequest) -> Path:
    """Write the file that asks a run for something. A run that does not go on is refused with a UserError."""
    state = summarise(run).state
    if state != "running":
        raise UserError(
            f"The run {run.path.name} has ended ({state}); nobody would read the request.",
            fix=f"Go on with it first: acestep train --resume {run.path}",
        )
    path = request_file(run.path, name)
    write_text(path, "")
    return path


def remove_requests(folder: Path) -> None:
    """Remove requests nobody has read: those made while no run went on are not meant for the next."""
    for name in get_args(RunRequest):
        _take(request_file(folder, name))


class RequestFiles:
    """Turns the files of a run folder into requests of its job."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._looked: float | None = None

    def collect(self, job: Job) -> None:
        """Pass new requests on to the job. Looks at the disk at most once a second."""
        now = self._clock()
        # the distance and not the difference: a clock may be set back
        if self._looked is not None and abs(now - self._looked) < SHORTEST_INTERVAL_S:
            return
        self._looked = now
        for name in ("preview", "save"):
            if _take(request_file(self._folder, name)):
                job.request(name)
        if _take(request_file(self._folder, "stop")):
            job.request_stop()


def _take(file: Path) -> bool:
    try:
        file.unlink()
    except OSError:  # not there, a folder of that name, or not ours to remove: then it would be honoured for ever
        return False
    return True
