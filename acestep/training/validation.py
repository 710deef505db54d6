"""Validation with low noise: the same windows, noise and timesteps every time, so that only the adapter differs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from acestep.core.device import lacks_memory
from acestep.settings import TrainSettings
from acestep.training.data import Batch, Flow, Window, derived_generator
from acestep.training.forward import FlowModel
from acestep.training.objective import validation_timesteps

MOST_WINDOWS = 16
"""More windows would cost time without making the mean much steadier."""


@dataclass(frozen=True)
class ValidationResult:
    """Mean loss over held-out windows, and its mean at each fixed timestep."""

    loss: float
    timesteps: list[float]
    loss_by_timestep: list[float]
    windows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Validation:
    """Holds the fixed draws of a run's validation."""

    def __init__(
        self, windows: list[Window], settings: TrainSettings, flow: Flow, pass_size: int | None = None
    ) -> None:
        ranked = sorted(windows, key=lambda window: window.song.stored.id)
        self.windows = ranked[:MOST_WINDOWS]
        self.timesteps = validation_timesteps(
            settings.timestep_draw, flow.mu, flow.sigma, settings.validation_timesteps
        )
        self.batch_size = pass_size or settings.batch_size

    @torch.no_grad()
    def run(self, model: FlowModel) -> ValidationResult:
        """Judge the model as it stands. It must be in evaluation mode; no random state is touched.

        Passes that do not fit into memory are halved for good, which changes no result.
        """
        losses: list[list[float]] = []
        while len(losses) < len(self.windows):
            try:
                losses.append(self._window_losses(model, self.windows[len(losses)]))
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error) or self.batch_size == 1:
                    raise
                self.batch_size //= 2
        table = torch.tensor(losses, dtype=torch.float64)  # (windows, timesteps)
        return ValidationResult(
            loss=float(table.mean()),
            timesteps=self.timesteps,
            loss_by_timestep=table.mean(dim=0).tolist(),
            windows=len(self.windows),
        )

    def _window_losses(self, model: FlowModel, window: Window) -> list[float]:
        losses: list[float] = []
        for first in range(0, len(self.timesteps), self.batch_size):
            timesteps = self.timesteps[first : first + self.batch_size]
            noise = [self._noise(window, first + offset) for offset in range(len(timesteps))]
            batch = Batch(
                latents=window.latents.expand(len(timesteps), -1, -1),
                noise=torch.stack(noise),
                t=torch.tensor(timesteps),
                uniform=torch.ones(len(timesteps)),
                conditions=[window.song.condition] * len(timesteps),
                weights=torch.ones(len(timesteps)),
            )
            losses += model.item_losses(batch, condition_dropout=0.0).tolist()
        return losses

    @staticmethod
    def _noise(window: Window, index: int) -> torch.Tensor:
        # Not seeded with the run: two runs on the same songs are judged with the same noise.
        generator = derived_generator("validation", window.song.stored.id, window.start, index)
        return torch.randn(window.latents.shape, generator=generator)
