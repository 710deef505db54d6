"""Deciding between hypotheses: each gets a score from its features, scores become probabilities.

A softmax over all hypotheses together with "none of them", whose score is 0. The weights were fitted by
`benchmarks/analysis.py --fit` on pieces of known tempo, metre and key and on sounds that have none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")

WEIGHTS_FILE = Path(__file__).with_name("analysis_weights.json")
SURE_ENOUGH = 0.4
"""Least probability at which a value is given."""


@dataclass(frozen=True)
class Estimate(Generic[T]):
    """A value, the probability that it is right, and the next likely one.

    Where nothing is sure enough the value is None; confidence and runner-up then belong to the best guess.
    """

    value: T | None
    confidence: float
    runner_up: T | None


@cache
def weights(name: str) -> np.ndarray:
    """Weights of "rhythm" [features, metres] or "key" [features, modes]."""
    return np.array(json.loads(WEIGHTS_FILE.read_text(encoding="utf-8"))[name])


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax of scores of any shape and of one more hypothesis of score 0, which is left out of the result."""
    highest = max(0.0, float(scores.max(initial=0.0)))
    raised = np.exp(scores - highest)
    return np.asarray(raised / (raised.sum() + np.exp(-highest)))


def decide(values: list[T], chances: np.ndarray) -> Estimate[T]:
    """The likeliest value, if it is sure enough."""
    order = np.argsort(-chances, kind="stable")
    if not len(order):
        return Estimate(None, 0.0, None)
    confidence = float(chances[order[0]])
    if confidence < SURE_ENOUGH:
        return Estimate(None, confidence, values[order[0]])
    return Estimate(values[order[0]], confidence, values[order[1]] if len(order) > 1 else None)
