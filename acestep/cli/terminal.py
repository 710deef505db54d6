"""What a job says in a terminal: a progress bar with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from acestep.core.jobs import Kind, Stage
from acestep.core.words import noun_for

PLAIN_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal."""


def say_error(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def confirm(question: str) -> bool:
    """Ask on the terminal; no where nobody can answer."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class TerminalListener:
    """Listens to a job and shows it on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0

    def __call__(self, kind: Kind, what: Stage | str) -> None:
        if isinstance(what, str):
            self._line(f"Warning: {what}" if kind == "warn" else what)
        elif self._console.is_terminal:
            self._draw(kind, what)
        else:
            self._plain(kind, what)

    def _line(self, text: str) -> None:
        console = self._bar.console if self._bar is not None else self._console
        console.print(text, markup=False)

    def _draw(self, kind: Kind, stage: Stage) -> None:
        if kind == "start":
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(noun_for(stage.total, stage.unit)),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),  # names of songs may hold brackets
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(stage.name, total=stage.total, completed=stage.already, note="")
            self._bar.start()
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=stage.done, note=stage.note)
            if kind == "end":
                self._bar.stop()
                self._bar = None
                self._line(_ended(stage))

    def _plain(self, kind: Kind, stage: Stage) -> None:
        now = time.monotonic()
        if kind == "start":
            self._last_line = now
        elif kind == "end":
            self._line(_ended(stage))
        elif kind == "progress" and now - self._last_line >= PLAIN_EVERY_S:
            self._last_line = now
            remaining = stage.remaining_s(now)
            left = f", about {_duration(remaining)} left" if remaining is not None else ""
            self._line(f"{stage.name}: {stage.progress}{left} {stage.note}".rstrip())


def _ended(stage: Stage) -> str:
    seconds = (stage.ended or stage.started) - stage.started
    return f"{stage.name}: {stage.progress} in {_duration(seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
