"""Optimizers and learning-rate schedules by name. A schedule is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from acestep.settings import OptimizerSettings

WARMUP_START = 0.1
"""Warm-up begins at this share of the learning rate."""
FLOOR = 0.01
"""Decaying schedules end at this share of the learning rate."""
LONGEST_WARMUP = 0.1
"""Warm-up never takes more than this share of the run."""


def _adamw(parameters: Sequence[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=_can_fuse(parameters)
    )


def _can_fuse(parameters: Sequence[torch.nn.Parameter]) -> bool:
    kinds = {parameter.device.type for parameter in parameters}
    return kinds <= {"cuda", "cpu", "xpu"} and len(kinds) == 1


OPTIMIZERS: dict[str, Callable[[Sequence[torch.nn.Parameter], OptimizerSettings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
}


def _cosine(progress: float) -> float:
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float) -> float:
    return 1 - (1 - FLOOR) * progress


def _constant(progress: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "linear": _linear, "constant": _constant}
"""Share of the learning rate after warm-up, from the share of the remaining run that is done (0 to 1)."""


def warmup_length(settings: OptimizerSettings, total_steps: int) -> int:
    """Steps of warm-up in a run of `total_steps`: what was asked for, at most a tenth of the run."""
    return min(settings.warmup_steps, int(total_steps * LONGEST_WARMUP))


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0, in a run of `total_steps`."""
    warmup = warmup_length(settings, total_steps)
    if step < warmup:
        share = WARMUP_START + (1 - WARMUP_START) * step / warmup
    else:
        share = SCHEDULES[settings.schedule](min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup)))
    return settings.learning_rate * share


def make_optimizer(parameters: Sequence[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer named in the settings over fp32 adapter parameters."""
    return OPTIMIZERS[settings.optimizer](parameters, settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
