"""What a run will be, told at once: its length from the index of the tensors, its cost from a measurement of before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.preprocess.store import TensorStore
from acestep.settings import PreviewSettings, RunSettings, TrainSettings
from acestep.training.plan import Plan

if TYPE_CHECKING:
    from acestep.training.forecast import Forecast

FREE_TO_CHANGE = frozenset(
    [*RunSettings.model_fields, *PreviewSettings.model_fields, "learning_rate", "schedule", "warmup_steps"]
)
"""Settings that change neither the time nor the memory of a step."""


@dataclass(frozen=True)
class Outlook:
    """Numbers of a run that has not begun."""

    songs: int
    held_out: int
    held_out_kind: str
    steps_per_epoch: int
    steps: int
    checkpoints: int
    """Checkpoints that lie in the run folder at its end."""
    validations: int

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch


@dataclass(frozen=True)
class Measured:
    """What was measured, and with which settings."""

    settings: TrainSettings
    forecast: Forecast

    def holds_for(self, settings: TrainSettings) -> bool:
        """Whether a step with these settings costs what was measured."""
        now, then = settings.model_dump(), self.settings.model_dump()
        return all(now[name] == then[name] for name in now if name not in FREE_TO_CHANGE)

    def seconds(self, outlook: Outlook) -> float | None:
        """Length of such a run; None where the measurement ran out of memory."""
        found = self.forecast
        if found.step_s is None or found.validation_s is None:
            return None
        return outlook.steps * found.step_s + outlook.validations * found.validation_s

    def disk_bytes(self, outlook: Outlook) -> int | None:
        """Bytes of the checkpoints: those that stay, and one more while the next is written."""
        size = self.forecast.checkpoint_bytes
        return None if size is None else (outlook.checkpoints + 1) * size


def outlook(store: TensorStore, settings: TrainSettings) -> Outlook:
    """Length of a run and what it leaves, without reading a tensor. Raises UserError as the run itself would."""
    from acestep.training.data import EpochOrder, outline_data  # torch comes in here

    data = outline_data(store, settings)
    per_epoch = EpochOrder(data, settings).steps_per_epoch
    plan = Plan.of(settings, per_epoch)
    return Outlook(
        songs=len(data.songs),
        held_out=len(data.held_out),
        held_out_kind=data.held_out_kind,
        steps_per_epoch=per_epoch,
        steps=plan.total_steps,
        checkpoints=plan.checkpoints_kept(settings.keep_last),
        validations=plan.validations() if data.held_out else 0,
    )
