"""Learning-rate schedules: pure functions of the step, over the real number of optimizer steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from acestep.settings import OptimizerSettings
from acestep.settings.formula import Formula
from acestep.training.optimizers import peak_rate
from acestep.training.plan import Length

WARMUP_START = 0.1
"""Warm-up begins at this share of the learning rate."""
FLOOR = 0.01
"""Decaying schedules end at this share of the learning rate."""
LONGEST_WARMUP = 0.1
"""Warm-up never takes more than this share of the run."""
FIRST_CYCLE = 0.25
"""Cosine with warm restarts: the first cycle's share of the run; each next one is twice as long."""


def _cosine(progress: float) -> float:
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


def _cosine_restarts(progress: float) -> float:
    begin, cycle = 0.0, FIRST_CYCLE
    while progress >= begin + cycle and begin + cycle < 1:
        begin, cycle = begin + cycle, 2 * cycle
    return _cosine(min(1.0, (progress - begin) / cycle))


def _linear(progress: float) -> float:
    return 1 - (1 - FLOOR) * progress


def _constant(progress: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "linear": _linear,
    "constant": _constant,
    "constant_with_warmup": _constant,
}
"""Share of the learning rate after warm-up, from the share of the remaining run that is done (0 to 1)."""


def warmup_length(settings: OptimizerSettings, total_steps: int) -> int:
    """Steps of warm-up in a run of `total_steps`: what was asked for, at most a tenth of the run; constant has none."""
    if settings.schedule == "constant":
        return 0
    return min(settings.warmup_steps, int(total_steps * LONGEST_WARMUP))


def learning_rate(settings: OptimizerSettings, step: int, length: Length) -> float:
    """The learning rate of optimizer step `step`, counted from 0."""
    peak = peak_rate(settings)
    if settings.optimizer == "schedule_free":
        return peak
    warmup = warmup_length(settings, length.total_steps)
    if step < warmup:
        return peak * (WARMUP_START + (1 - WARMUP_START) * step / warmup)
    if settings.schedule == "formula":
        return _formula_rate(settings, step, warmup, length, peak)
    return peak * SCHEDULES[settings.schedule](min(1.0, (step - warmup) / max(1, length.total_steps - 1 - warmup)))


def _formula_rate(settings: OptimizerSettings, step: int, warmup: int, length: Length, peak: float) -> float:
    remaining = max(1, length.total_steps - 1 - warmup)
    rate = Formula(settings.schedule_formula)(
        {
            "step": step - warmup,
            "total_steps": length.total_steps - warmup,
            "progress": min(1.0, (step - warmup) / remaining),
            "epoch": step // length.steps_per_epoch,
            "total_epochs": math.ceil(length.total_steps / length.steps_per_epoch),
            "steps_per_epoch": length.steps_per_epoch,
            "base_lr": peak,
        }
    )
    # Outside what a rate can be, the formula has no answer; training goes on with the plain rate.
    return rate if math.isfinite(rate) and rate >= 0 else peak
