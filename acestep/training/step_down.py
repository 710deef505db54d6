"""What a run does to fit into memory, and what it does next when a step does not fit.

The run is saved as it was before the step, opened again with the gentlest measure that is left, and makes the same
step again. Smaller passes and recomputed layers change no result; shorter windows and 4-bit base weights do, a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from acestep.core.device import lacks_memory
from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.model.facts import LATENT_RATE
from acestep.model.quantising import why_not
from acestep.settings import TrainSettings
from acestep.settings.base import Settings
from acestep.settings.train import BaseWeights
from acestep.training.checkpoints import checkpoint_path
from acestep.training.optimizers import EIGHT_BIT_DEVICES

if TYPE_CHECKING:
    from pathlib import Path

    from acestep.training.data import Sample
    from acestep.training.loop import Session

T = TypeVar("T")
LEAST_WINDOW = 250
"""Windows are not made shorter than these latent frames (10 s): too little music to learn from."""
RECORD = "economy"
"""Name in run.json."""


class OutOfRoom(torch.OutOfMemoryError):
    """A pass did not fit into memory in one process at least; raised in all of them."""

    def __init__(self, windows: int, frames: int) -> None:
        super().__init__(f"out of memory with {counted(windows, 'windows')} of {counted(frames, 'frames')} in a pass")
        self.windows = windows
        self.frames = frames


class NothingLeft(UserError):
    """A step does not fit, and the settings allow no measure against it, or none is left."""


class Economy(Settings):
    """How a run saves memory: as its settings say at first, and less and less generous where that does not fit.

    `pass_size` is the most windows in one forward pass; a larger micro-batch is taken in parts. `longest_window` is in
    latent frames, 0 where windows are as long as the settings make them.
    """

    pass_size: int
    gradient_checkpointing: float
    longest_window: int
    base_weights: BaseWeights

    @classmethod
    def of(cls, settings: TrainSettings) -> Economy:
        return cls(
            pass_size=settings.batch_size,
            gradient_checkpointing=settings.gradient_checkpointing,
            longest_window=0,
            base_weights=settings.base_weights,
        )

    def in_force(self) -> dict[str, Any]:
        """The settings that hold instead of those the user gave."""
        held = {"gradient_checkpointing": self.gradient_checkpointing, "base_weights": self.base_weights}
        return {**held, "max_latent_length": self.longest_window} if self.longest_window else held

    def parts(self, micro_batch: Sequence[T]) -> list[Sequence[T]]:
        """A micro-batch in passes. Its gradient is the sum of theirs."""
        return [micro_batch[first : first + self.pass_size] for first in range(0, len(micro_batch), self.pass_size)]

    def lowered(self, windows: int, frames: int, device: str) -> tuple[Economy, str] | None:
        """The next measure when so many windows of so many frames do not fit, and its name; None when none is left."""
        if windows > 1:
            size = windows // 2
            return self.changed(pass_size=size), f"passes of {size} instead of {windows} windows, for the same result"
        if self.gradient_checkpointing < 1:
            return self.changed(gradient_checkpointing=1), "every layer is recomputed in the backward pass"
        if frames > LEAST_WINDOW:
            half = max(LEAST_WINDOW, frames // 2)
            words = f"windows of at most {half / LATENT_RATE:g} s instead of {frames / LATENT_RATE:g} s"
            return self.changed(longest_window=half), words
        if self.base_weights != "nf4" and not why_not("nf4", device):
            return self.changed(base_weights="nf4"), "base weights of 4 bits"
        return None


@contextmanager
def room_for(session: Session, micro_batches: list[list[Sample]]) -> Iterator[None]:
    """Raise OutOfRoom in every process when the block runs out of memory in one of them."""
    failed = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        failed = True
    if session.processes.any(failed):
        # of the whole step, so that all processes say the same
        windows = min(session.economy.pass_size, max(len(batch) for batch in micro_batches))
        frames = max(session.data.length_of(sample.piece) for batch in micro_batches for sample in batch)
        raise OutOfRoom(windows, frames)


def step_down(session: Session, failure: OutOfRoom) -> tuple[Economy, Path]:
    """Choose and record the next measure; the checkpoint to go on from is written already.

    Raises NothingLeft where the settings say to stop or nothing is left to do.
    """
    settings, step, device = session.settings, session.state.step, session.model.device.type
    windows, seconds = counted(failure.windows, "windows"), failure.frames / LATENT_RATE
    trouble = f"Step {step + 1} ran out of memory on {device} with passes of {windows} of {seconds:g} s each"
    measure = session.economy.lowered(failure.windows, failure.frames, device)
    if settings.on_out_of_memory == "stop" or measure is None:
        raise NothingLeft(
            f"{trouble}.",
            fix=_advice(session, failure.windows, failure.frames),
            detail=f"Everything up to step {step} is saved in {session.run.path}.",
        )
    economy, words = measure
    if session.processes.is_main:
        session.run.amend(**{RECORD: economy.model_dump(mode="json")})
    session.record.event("step_down", step=step, measure=words, **economy.model_dump(mode="json"))
    session.record.warn(step, f"{trouble}. The step is made again, and the run goes on, with {words}.")
    session.processes.wait()
    return economy, checkpoint_path(session.run.checkpoints, step)


def out_of_memory_elsewhere(session: Session) -> UserError:
    """The error for memory that runs out between the passes: in the optimizer, a validation or a checkpoint."""
    longest = session.economy.longest_window or session.settings.max_latent_length
    return UserError(
        f"Memory ran out on {session.model.device.type} after step {session.state.step}, between forward passes.",
        fix=_advice(session, session.economy.pass_size, longest),
        detail=f"Checkpoints of the run are in {session.run.checkpoints}.",
    )


def _advice(session: Session, windows: int, frames: int) -> str:
    """The three settings that would help most where so many windows of so many frames do not fit."""
    settings, economy, device = session.settings, session.economy, session.model.device.type
    batch = settings.batch_size * settings.gradient_accumulation
    knobs = [
        *([f"batch_size 1 with gradient_accumulation {batch}"] if windows > 1 else []),
        *(["gradient_checkpointing 1"] if economy.gradient_checkpointing < 1 else []),
        *([f"max_latent_length {max(LEAST_WINDOW, frames // 2)}"] if frames > LEAST_WINDOW else []),
        *(["base_weights nf4"] if economy.base_weights != "nf4" and not why_not("nf4", device) else []),
        *(["optimizer adamw8bit"] if settings.optimizer != "adamw8bit" and device in EIGHT_BIT_DEVICES else []),
        *(["train_mlp off"] if settings.train_mlp else []),
        "a smaller adapter",
        "closing other programs on the device",
    ]
    return f"What helps most: {', '.join(knobs[:3])}."
