"""What the log of a run tells. Summaries, curves and the page that watches a run all read it by these rules.

Where a run was resumed from an earlier step, what came after that step is done again and counts no more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Point = tuple[int, float]
"""A step and the loss there."""

UNFINISHED = "unfinished"
"""The state of a run whose log has no end: it goes on, or was cut off."""


@dataclass(frozen=True)
class Step:
    """One optimizer step. Numbers that were none are None."""

    number: int
    epoch: int
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    seconds: float


@dataclass(frozen=True)
class Preview:
    """One piece that was played. Strength None is the model without the adapter."""

    step: int
    path: str
    caption: str
    seed: int
    strength: float | None


class RunStory:
    """A run as its events tell it, taken in one after the other.

    `state` is empty before the run has begun, then UNFINISHED, and at its end finished, stopped or failed; `reason`
    says why, or which step is kept in final/.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.steps: list[Step] = []
        self.validations: list[Point] = []
        self.previews: list[Preview] = []
        self.bests: list[Point] = []
        self.total_steps = 0
        self.state = ""
        self.reason = ""
        for event in events:
            self.take(event)

    @property
    def step(self) -> int:
        return self.steps[-1].number if self.steps else 0

    @property
    def training(self) -> list[Point]:
        """The loss of each step that has one."""
        return [(step.number, step.loss) for step in self.steps if step.loss is not None]

    @property
    def best(self) -> Point | None:
        """The step that is kept in best/, and the loss it was judged by."""
        return self.bests[-1] if self.bests else None

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event; kinds that are not known change nothing.

        Raises ValueError, KeyError or TypeError for one that no run writes, and then is as it was before.
        """
        taker = _TAKERS.get(event.get("kind", ""))
        if taker:
            taker(self, event)

    def _started(self, event: Mapping[str, Any]) -> None:
        step, total_steps = int(event["step"]), int(event.get("total_steps", self.total_steps))
        self._back_to(step)
        self.total_steps, self.state, self.reason = total_steps, UNFINISHED, ""

    def _stepped(self, event: Mapping[str, Any]) -> None:
        numbers = (event["loss"], event.get("learning_rate"), event.get("grad_norm"))
        loss, rate, norm = (None if value is None else float(value) for value in numbers)
        seconds = float(event.get("seconds", 0.0))
        step = Step(int(event["step"]), int(event.get("epoch", 0)), loss, rate, norm, seconds)
        self._back_to(step.number - 1)
        self.steps.append(step)
        self.state = UNFINISHED

    def _validated(self, event: Mapping[str, Any]) -> None:
        _put(self.validations, event)

    def _was_best(self, event: Mapping[str, Any]) -> None:
        _put(self.bests, event)

    def _played(self, event: Mapping[str, Any]) -> None:
        strength = None if event.get("base") else float(event["strength"])
        preview = Preview(int(event["step"]), str(event["path"]), str(event["caption"]), int(event["seed"]), strength)
        self.previews = [before for before in self.previews if before.path != preview.path] + [preview]

    def _ended(self, event: Mapping[str, Any]) -> None:
        self.state, self.reason = str(event["state"]), str(event.get("reason", "")).strip()

    def _back_to(self, step: int) -> None:
        if self.steps and self.steps[-1].number > step:
            del self.steps[bisect_right(self.steps, step, key=lambda done: done.number) :]
            for points in (self.validations, self.bests):
                del points[bisect_right(points, step, key=lambda point: point[0]) :]
            self.previews = [preview for preview in self.previews if preview.step <= step]


def _put(points: list[Point], event: Mapping[str, Any]) -> None:
    """The event's loss in the place of that of the same step; a step whose loss was no number has none."""
    step, loss = int(event["step"]), event["loss"]
    point = None if loss is None else (step, float(loss))
    del points[bisect_right(points, step - 1, key=lambda known: known[0]) :]
    if point is not None:
        points.append(point)


_TAKERS: dict[str, Callable[[RunStory, Mapping[str, Any]], None]] = {
    "start": RunStory._started,
    "resume": RunStory._started,
    "step": RunStory._stepped,
    "validation": RunStory._validated,
    "best": RunStory._was_best,
    "preview": RunStory._played,
    "end": RunStory._ended,
}
