"""The story of a run is that of an uninterrupted one, however often it was cut off and gone on with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.training.story import UNFINISHED, RunStory

LAST = 12


def events_of(steps: range) -> list[dict[str, Any]]:
    """What a run writes from one step to another: losses that depend on the step alone."""
    told: list[dict[str, Any]] = []
    for number in steps:
        told.append({"kind": "step", "step": number, "epoch": 1, "loss": 1 / number, "seconds": 1.0})
        if number % 3 == 0:
            told.append({"kind": "validation", "step": number, "loss": 2 / number})
            told.append({"kind": "best", "step": number, "loss": 2 / number})
        if number % 4 == 0:
            piece = {"path": f"samples/{number}.wav", "caption": "c", "seed": 1, "strength": 1.0}
            told.append({"kind": "preview", "step": number, **piece})
    return told


def begin(kind: str, step: int) -> dict[str, Any]:
    return {"kind": kind, "step": step, "total_steps": LAST}


@given(st.lists(st.tuples(st.integers(1, LAST), st.integers(0, LAST)), max_size=5))
def test_what_was_done_again_counts_once(cuts: list[tuple[int, int]]) -> None:
    """Each cut: the step it came to, and how far it then went back."""
    end = {"kind": "end", "state": "finished", "reason": "step 12"}
    told, at = [begin("start", 0)], 0
    for reached, back in cuts:
        reached = max(reached, at)
        told += events_of(range(at + 1, reached + 1))
        at = max(0, reached - back)
        told.append(begin("resume", at))
    told += [*events_of(range(at + 1, LAST + 1)), end]
    straight = RunStory([begin("start", 0), *events_of(range(1, LAST + 1)), end])
    assert vars(RunStory(told)) == vars(straight)
    assert straight.step == LAST and straight.best == (12, 2 / 12) and len(straight.previews) == 3


def test_after_a_resume_the_run_is_where_it_goes_on() -> None:
    """Also before its first new step: neither the step nor the best of what is undone is told."""
    story = RunStory([begin("start", 0), *events_of(range(1, 8)), begin("resume", 4)])
    assert (story.step, story.best, story.state) == (4, (3, 2 / 3), UNFINISHED)
    assert story.validations == [(3, 2 / 3)] and [piece.step for piece in story.previews] == [4]


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "step", "step": 2},
        {"kind": "step", "step": "x", "loss": 1.0},
        {"kind": "step", "step": 2, "loss": []},
        {"kind": "resume"},
        {"kind": "validation", "step": 0, "loss": "low"},
        {"kind": "best", "step": None, "loss": 1.0},
        {"kind": "preview", "step": 1, "path": "a.wav"},
        {"kind": "end"},
    ],
)
def test_an_event_that_no_run_writes_changes_nothing(broken: dict[str, Any]) -> None:
    story = RunStory([begin("start", 0), *events_of(range(1, 8))])
    with pytest.raises((ValueError, KeyError, TypeError)):
        story.take(broken)
    assert vars(story) == vars(RunStory([begin("start", 0), *events_of(range(1, 8))]))
