"""Optimizers by name, and what each needs done with the learning rate."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from acestep.core.errors import UserError
from acestep.settings import OptimizerSettings

Parameters = Sequence[torch.nn.Parameter]
EIGHT_BIT_DEVICES = ("cuda", "xpu", "cpu")
"""Where bitsandbytes has kernels for its 8-bit optimizer."""
PRODIGY_RATES = (0.1, 10.0)
"""Prodigy finds its own rate; its setting is a factor near 1. Rates outside this range were meant for others."""


def _adamw(
    parameters: Parameters, settings: OptimizerSettings, warmup_steps: int, fuse: bool = True
) -> torch.optim.Optimizer:
    fused = fuse and _can_fuse(parameters)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)


def _can_fuse(parameters: Parameters) -> bool:
    kinds = {parameter.device.type for parameter in parameters}
    return kinds <= {"cuda", "cpu", "xpu"} and len(kinds) == 1


def _adamw8bit(parameters: Parameters, settings: OptimizerSettings, warmup_steps: int) -> torch.optim.Optimizer:
    if find_spec("bitsandbytes") is None:
        raise UserError("The optimizer adamw8bit needs the package bitsandbytes.", fix="Run the installer again.")
    if (device := parameters[0].device.type) not in EIGHT_BIT_DEVICES:
        raise UserError(
            f"The optimizer adamw8bit does not work on {device}.", fix="Choose adafactor, which saves memory as well."
        )
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _adafactor(parameters: Parameters, settings: OptimizerSettings, warmup_steps: int) -> torch.optim.Optimizer:
    from transformers import Adafactor

    # Its own step sizes off: the rate is the user's, and the schedule the run's.
    return Adafactor(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def _prodigy(parameters: Parameters, settings: OptimizerSettings, warmup_steps: int) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weight decay where results are printed
        return Prodigy(
            parameters,
            lr=peak_rate(settings),
            weight_decay=settings.weight_decay,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,  # without it the warm-up's small rates inflate the estimate
        )


def _schedule_free(parameters: Parameters, settings: OptimizerSettings, warmup_steps: int) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    # It weighs its average by the rates it has seen, so the warm-up must be its own.
    return AdamWScheduleFree(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, warmup_steps=warmup_steps
    )


OPTIMIZERS: dict[str, Callable[[Parameters, OptimizerSettings, int], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedule_free": _schedule_free,
}


def peak_rate(settings: OptimizerSettings) -> float:
    """The rate that the schedule starts from: the user's, or 1 for Prodigy where another optimizer's was typed."""
    if settings.optimizer != "prodigy":
        return settings.learning_rate
    lowest, highest = PRODIGY_RATES
    return settings.learning_rate if lowest <= settings.learning_rate <= highest else 1.0


def rate_notes(settings: OptimizerSettings) -> list[str]:
    """What the user should know about how the learning rate is used, in sentences."""
    notes = []
    if settings.optimizer == "prodigy" and peak_rate(settings) != settings.learning_rate:
        notes.append(f"Prodigy finds its own learning rate; its factor is 1 and not {settings.learning_rate:g}.")
    if settings.optimizer == "schedule_free" and settings.schedule != "constant":
        notes.append(f"The schedule-free optimizer needs no schedule, so {settings.schedule} is not used.")
    return notes


def make_optimizer(
    parameters: Parameters, settings: OptimizerSettings, warmup_steps: int = 0, scaled: bool = False
) -> torch.optim.Optimizer:
    """The optimizer named in the settings over fp32 adapter parameters; `scaled` where fp16 scales the loss up."""
    if scaled and settings.optimizer == "adamw":
        return _adamw(parameters, settings, warmup_steps, fuse=False)  # fused, it would unscale once more by itself
    return OPTIMIZERS[settings.optimizer](parameters, settings, warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
