"""The numbers of a run that follow from its settings and its data, without torch: apps ask for them at every change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from acestep.settings import TrainSettings


@dataclass(frozen=True)
class Length:
    """How long a run is: what schedules are made over."""

    total_steps: int
    steps_per_epoch: int = 1


@dataclass(frozen=True)
class Plan:
    """How long a run is and what falls due in it, counted in optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    validate_every: int
    save_every: list[int]
    preview_every: list[int]

    @property
    def length(self) -> Length:
        return Length(self.total_steps, self.steps_per_epoch)

    @classmethod
    def of(cls, settings: TrainSettings, steps_per_epoch: int) -> Plan:
        saves = (settings.save_every_epochs * steps_per_epoch, settings.save_every_steps)
        previews = (settings.preview_every_epochs * steps_per_epoch, settings.preview_every_steps)
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=settings.max_steps or settings.epochs * steps_per_epoch,
            validate_every=settings.validate_every or steps_per_epoch,
            save_every=[steps for steps in saves if steps],
            preview_every=[steps for steps in previews if steps],
        )

    def validations(self, already: int = 0) -> int:
        """Validations after `already` steps: those that fall due, the one before the first step, and one at the end."""
        whole = math.ceil(self.total_steps / self.validate_every) + 1
        return max(0, whole - (already // self.validate_every + 1)) if already else whole

    def checkpoints_kept(self, keep_last: int) -> int:
        """Checkpoints in the run folder at its end; `keep_last` 0 keeps all."""
        last = self.total_steps
        saves = {last, *(step for every in self.save_every for step in range(every, last + 1, every))}
        return min(len(saves), keep_last) if keep_last else len(saves)
