"""Which step is the best, and when going on is useless.

Where songs are held out, the validation loss decides. Where none are, the mean training loss of the last five epochs
does, once the run is far enough along for it to mean something.
"""

from __future__ import annotations

import math

from acestep.settings import ValidationSettings
from acestep.training.checkpoints import LoopState

EPOCHS_AVERAGED = 5


def note_step(state: LoopState, loss: float, samples: int) -> None:
    """Add a step's loss to the mean of its epoch; losses that are not numbers are left out."""
    if math.isfinite(loss):
        state.epoch_loss_sum += loss * samples
        state.epoch_samples += samples


def close_epoch(state: LoopState) -> float | None:
    """End the epoch; returns the mean loss over the last five epochs, or None when no step of it had a loss."""
    if state.epoch_samples:
        state.epoch_losses = [*state.epoch_losses, state.epoch_loss_sum / state.epoch_samples][-EPOCHS_AVERAGED:]
    state.epoch_loss_sum, state.epoch_samples = 0.0, 0
    return sum(state.epoch_losses) / len(state.epoch_losses) if state.epoch_losses else None


def may_judge_training_loss(state: LoopState, total_steps: int, settings: ValidationSettings) -> bool:
    """Whether the training loss already decides: after `best_after_share` of the run, with five epochs behind it."""
    far_enough = state.step >= settings.best_after_share * total_steps
    return far_enough and len(state.epoch_losses) == EPOCHS_AVERAGED


def judge(state: LoopState, loss: float, settings: ValidationSettings) -> bool:
    """Whether this step is the best so far. Also counts how long nothing has improved, and ends the run for that."""
    if not math.isfinite(loss):
        return False
    if state.reference_loss is None or loss < state.reference_loss * (1 - settings.smallest_improvement):
        state.reference_loss, state.judgements_without_gain = loss, 0
    else:
        state.judgements_without_gain += 1
    patience = settings.early_stop_patience
    state.ended_early = bool(patience) and state.judgements_without_gain >= patience
    if state.best_loss is not None and loss >= state.best_loss:
        return False
    state.best_step, state.best_loss = state.step, loss
    return True
