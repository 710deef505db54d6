"""The weights that are judged, kept and used, where they are not those being trained.

Plain training uses its own weights. A running average (EMA) and the schedule-free optimizer keep two sets: one that
the gradient moves and one to use. `in_use` puts the second in place for as long as a block lasts, and the first back
bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from acestep.adapters import Adapter
from acestep.settings import TrainSettings


class Averaging:
    """No averaging: the trained weights are the ones to use."""

    keeps_two_weights = False

    def update(self, step: int) -> None:
        """Take note of optimizer step `step`, counted from 1."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The weights to use are in the adapter while the block lasts."""
        yield

    def restore(self) -> None:
        """The adapter holds the weights to use, as a checkpoint kept them; the trained ones are loaded next."""

    def kept(self) -> list[torch.Tensor]:
        """The tensors kept here, beside those of adapter and optimizer."""
        return []


class _TwoWeights(Averaging):
    """Keeps the weights to use in tensors of its own, and swaps them in."""

    keeps_two_weights = True

    def __init__(self, adapter: Adapter) -> None:
        self._parameters = adapter.parameters()

    def weights_to_use(self) -> list[torch.Tensor]:
        raise NotImplementedError

    @contextmanager
    def in_use(self) -> Iterator[None]:
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._put(self.weights_to_use())
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


class RunningAverage(_TwoWeights):
    """Exponential moving average in fp32: shadow ← d · shadow + (1 - d) · weights after every step.

    The decay starts low, min(d, (1 + n) / (10 + n)) at step n, so that the first weights, which have learnt nothing,
    do not linger.
    """

    def __init__(self, adapter: Adapter, decay: float) -> None:
        super().__init__(adapter)
        self._decay = decay
        self._shadow = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            shadow.lerp_(parameter, 1 - decay)

    def weights_to_use(self) -> list[torch.Tensor]:
        return self._shadow

    def kept(self) -> list[torch.Tensor]:
        return self._shadow

    @torch.no_grad()
    def restore(self) -> None:
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            shadow.copy_(parameter)


class ScheduleFreeAverage(_TwoWeights):
    """The average inside the schedule-free optimizer: x = (y - (1 - β₁) z) / β₁, with y trained and z in its state.

    Computed here and not by the optimizer's own eval(), whose way back to y is not exact.
    """

    def __init__(self, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(adapter)
        self._optimizer = optimizer
        optimizer.train()  # type: ignore[attr-defined]

    def weights_to_use(self) -> list[torch.Tensor]:
        beta = self._optimizer.param_groups[0]["betas"][0]
        values = []
        for parameter in self._parameters:
            z = self._optimizer.state[parameter].get("z")
            values.append(parameter.detach().clone() if z is None else torch.lerp(z, parameter.detach(), 1 / beta))
        return values


def make_averaging(adapter: Adapter, optimizer: torch.optim.Optimizer, settings: TrainSettings) -> Averaging:
    """What the settings ask for. The schedule-free optimizer already averages, so EMA adds nothing to it."""
    if settings.optimizer == "schedule_free":
        return ScheduleFreeAverage(adapter, optimizer)
    return RunningAverage(adapter, settings.ema_decay) if settings.ema_decay else Averaging()
