"""A run as its folder tells it: read from the last place on, so that looking once a second costs nearly nothing.

Only the log and the previews are read, so a run of another process or of last week shows the same picture.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from acestep.core.errors import UserError
from acestep.core.gpu import GpuReading, read_gpu
from acestep.core.paths import inside
from acestep.training.runs import is_running
from acestep.training.story import UNFINISHED, Preview, RunStory
from acestep.ui.app import App
from acestep.ui.charts import Curve, chart, smoothed
from acestep.ui.header import duration_words
from acestep.ui.players import playable

LINES_KEPT = 200
STEPS_TIMED = 50
"""The time left is told by the mean of so many steps; the first steps of a run warm up."""
GPU_EVERY_S = 5.0


class RunView:
    """What the log of a run says so far. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "events.jsonl"
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self.story = RunStory()
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)

    def sign(self) -> Hashable:
        """Cheap, and another one when there is something new to read."""
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def read(self) -> bool:
        """Take in what was written since the last time; a line that is not whole yet waits. True when there was any."""
        with self._lock:
            try:
                if self._file.stat().st_size < self._offset:
                    self._forget()  # another log under the same name
                with open(self._file, "rb") as handle:
                    handle.seek(self._offset)
                    new = handle.read()
            except FileNotFoundError:  # not begun; or gone: deleted, or stopped before its first step
                self._forget()
                return False
            whole = new[: new.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.splitlines():
                try:
                    event = json.loads(line)
                    self.story.take(event)
                    self.lines += _log_lines(event)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a line cut off by a crash and ended by a later run: nothing in it can be trusted
            return bool(whole)

    def remaining_s(self) -> float | None:
        """Seconds left at the pace of the last steps; None before there are two."""
        timed = self.story.steps[1:][-STEPS_TIMED:]
        if not timed:
            return None
        pace_s = sum(step.seconds for step in timed) / len(timed)
        return pace_s * max(0, self.story.total_steps - self.story.step)

    @property
    def reason(self) -> str:
        """Why the run ended, in a line: of a traceback the last, which says what it was."""
        return self.story.reason.splitlines()[-1] if self.story.reason else ""


def _log_lines(event: dict[str, Any]) -> list[str]:
    """What the log on the page says of an event, with the time of day."""
    words = _WORDS.get(event["kind"])
    if words is None:
        return []
    clock = time.strftime("%H:%M:%S", time.localtime(float(event["time"])))
    return [f"{clock}  {line}" for line in words(event)]


def _validation_words(event: dict[str, Any]) -> list[str]:
    return [] if event["loss"] is None else [f"Step {event['step']}: validation loss {event['loss']:.5f}."]


def _end_words(event: dict[str, Any]) -> list[str]:
    reason = str(event.get("reason", "")).strip()
    if event["state"] == "failed":
        return reason.splitlines()
    return [f"Ended: {event['state']}; final/ holds {line}." for line in reason.splitlines()]


_WORDS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "start": lambda event: [str(line) for line in event.get("summary", [])],
    "resume": lambda event: [f"Resumed at step {event['step']}.", *map(str, event.get("summary", []))],
    "validation": _validation_words,
    "best": lambda event: [f"Step {event['step']} is the best so far."],
    "checkpoint": lambda event: [f"Step {event['step']}: saved."],
    "warning": lambda event: [f"Warning: {event['text']}"],
    "end": _end_words,
}


@dataclass
class Live:
    """The views of the runs that were looked at, shared by all pages, and the last reading of the graphics card."""

    app: App
    clock: Callable[[], float] = time.time
    _views: dict[Path, RunView] = field(default_factory=dict)
    _gpu: tuple[float, GpuReading | None] = (0.0, None)

    def view(self) -> RunView | None:
        """The view of the chosen run, up to date; None where none is chosen or it is gone."""
        if not self.app.workspace.run:
            return None
        folder = Path(self.app.workspace.run)
        view = self._views.setdefault(folder, RunView(folder))
        view.read()
        return view

    def sign(self) -> Hashable:
        """Changes when the chosen run writes or is cut off, and when work begins or ends."""
        chosen, work = self.app.workspace, self.app.background.current
        view = self._views.get(Path(chosen.run)) or RunView(Path(chosen.run)) if chosen.run else None
        running = view and view.story.state == UNFINISHED and is_running(view.folder)
        look = (chosen.smoothing, chosen.logarithmic)
        return chosen.run, view and view.sign(), look, work and (work.started, work.state), running

    def runs_here(self, view: RunView) -> bool:
        work = self.app.background.current
        return bool(work and work.running and work.subject == view.folder)

    def state_words(self, view: RunView) -> str:
        """running, running in another program, interrupted, finished, stopped or failed."""
        if self.runs_here(view):
            return "running" if view.story.steps else "getting ready"
        if view.story.state == UNFINISHED:
            return "running in another program" if is_running(view.folder) else "interrupted"
        work = self.app.background.current
        if not view.story.state and work and work.subject == view.folder:
            return work.state
        return view.story.state or "not begun"

    def gpu(self) -> GpuReading | None:
        """The graphics card, read every few seconds at most."""
        read_at, reading = self._gpu
        if abs(self.clock() - read_at) > GPU_EVERY_S:
            reading = read_gpu()
            self._gpu = (self.clock(), reading)
        return reading


def status_html(live: Live) -> str:
    """How far the chosen run is, in a row of facts; or why it failed, in a sentence."""
    view = live.view()
    if view is None:
        return '<p class="quiet">No run is chosen. Start one, or choose one from the list.</p>'
    state, story = live.state_words(view), view.story
    newest = story.steps[-1] if story.steps else None
    facts = {"State": state, "Step": f"{story.step} of {story.total_steps}" if story.total_steps else "–"}
    if newest:
        facts["Epoch"] = str(newest.epoch)
        facts["Loss"] = "not a number" if newest.loss is None else f"{newest.loss:.4f}"
        facts["Step time"] = f"{newest.seconds:.2f} s"
    if story.validations:
        facts["Validation"] = f"{story.validations[-1][1]:.5f}"
    if story.best:
        facts["Best"] = f"{story.best[1]:.5f} at {story.best[0]:g}"
    remaining = view.remaining_s()
    if state.startswith("running") and remaining is not None:
        facts["Left"] = duration_words(remaining)
    if live.runs_here(view) and (card := live.gpu()):
        facts["GPU memory"] = f"{card.used_bytes / 2**30:.1f} of {card.total_bytes / 2**30:.1f} GiB"
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="status" role="status">{cells}</dl>{_ending_html(live, view, state)}'


def _ending_html(live: Live, view: RunView, state: str) -> str:
    work = live.app.background.current
    reason = view.reason or (work.problem if work and work.subject == view.folder else "")
    if state == "failed":
        return f'<p class="problem" role="alert">The run failed: {escape(reason)}</p>'
    if state == "interrupted":
        return '<p class="problem">The run was cut off. Resume it to go on from its last checkpoint.</p>'
    if state == "stopped" and not view.story.state:
        return '<p class="quiet">It was stopped before its first step, so nothing is kept.</p>'
    if state in ("finished", "stopped"):
        return f'<p class="good">The adapter is in {escape(str(view.folder / "final"))}: {escape(reason)}.</p>'
    return ""


def loss_html(live: Live) -> str:
    """The loss of each step, smoothed, with the validation curve over it."""
    view, chosen = live.view(), live.app.workspace
    raw = view.story.training if view else []
    curves = [
        Curve("each step", raw, "raw"),
        Curve("smoothed", smoothed(raw, chosen.smoothing), "smooth"),
        Curve("validation", view.story.validations if view else [], "validation"),
    ]
    return chart("Loss", curves, logarithmic=chosen.logarithmic)


def side_charts_html(live: Live) -> str:
    """Learning rate and gradient norm."""
    steps = view.story.steps if (view := live.view()) else []
    rates = [(step.number, step.learning_rate) for step in steps if step.learning_rate is not None]
    norms = [(step.number, step.grad_norm) for step in steps if step.grad_norm is not None]
    charts = (chart("Learning rate", [Curve("rate", rates)]), chart("Gradient norm", [Curve("norm", norms, "other0")]))
    return f'<div class="pair">{"".join(charts)}</div>'


def log_text(live: Live) -> str:
    """The last lines of the run's log; before there is one, of the work that makes it."""
    view, work = live.view(), live.app.background.current
    if view is None:
        return ""
    own = list(work.lines) if work and work.subject == view.folder and not view.lines else []
    trace = work.trace.splitlines() if work and work.subject == view.folder and not view.reason else []
    return "\n".join([*view.lines, *own, *trace])


def preview_choices(live: Live) -> list[tuple[str, int]]:
    """The steps that have previews, newest first, below the choice that follows the newest."""
    steps = {preview.step for preview in view.story.previews} if (view := live.view()) else set()
    return [("newest", 0), *((f"step {step}", step) for step in sorted(steps, reverse=True))]


def previews_html(live: Live) -> str:
    """Players for the pieces of a step: a row a caption and seed, a column a strength, the base first."""
    view, wanted = live.view(), live.app.workspace.preview_step
    if view is None or not view.story.previews:
        return '<p class="quiet">No previews yet. Press "Preview now", or set previews in the form.</p>'
    known = {preview.step for preview in view.story.previews}
    step = wanted if wanted in known else max(known)
    shown = [preview for preview in view.story.previews if preview.step == step]
    strengths = sorted({preview.strength for preview in shown}, key=lambda at: (at is not None, at or 0.0))
    heads = "".join(f'<th scope="col">{_strength_words(strength)}</th>' for strength in strengths)
    rows = []
    for caption, seed in dict.fromkeys((preview.caption, preview.seed) for preview in shown):
        pieces = {piece.strength: piece for piece in shown if (piece.caption, piece.seed) == (caption, seed)}
        cells = "".join(
            f'<td data-label="{_strength_words(strength)}">{_player(live, view, pieces.get(strength))}</td>'
            for strength in strengths
        )
        rows.append(f'<tr><th scope="row">{escape(caption)}<span>seed {seed}</span></th>{cells}</tr>')
    return (
        f'<table class="previews"><caption>Step {step}</caption>'
        f'<thead><tr><th scope="col">Caption</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _strength_words(strength: float | None) -> str:
    return "without adapter" if strength is None else f"strength {strength:g}"


def _player(live: Live, view: RunView, piece: Preview | None) -> str:
    if piece is None:
        return ""
    try:
        source = playable(live.app, inside(view.folder, piece.path))
    except (UserError, OSError):
        return "the file is gone"
    label = f"{_strength_words(piece.strength)}, seed {piece.seed}, step {piece.step}"
    # the address is relative: behind a proxy the app does not stand at the root
    return f'<audio controls preload="none" src="gradio_api/file={quote(source)}" aria-label="{escape(label)}"></audio>'
