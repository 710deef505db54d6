"""Which step is the best, and when a run ends before its time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hand_made import MakeStore, short_run
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.settings import ValidationSettings
from acestep.training.checkpoints import LoopState
from acestep.training.judge import close_epoch, judge, may_judge_training_loss, note_step
from acestep.training.train import train


def test_epochs_are_averaged_over_samples_and_five_epochs() -> None:
    state = LoopState()
    means = []
    for epoch in range(8):
        for loss, samples in ((1.0 + epoch, 2), (4.0, 1), (math.nan, 3)):
            note_step(state, loss, samples)
        means.append(((1.0 + epoch) * 2 + 4.0) / 3)
        assert close_epoch(state) == pytest.approx(sum(means[-5:]) / len(means[-5:]))
    assert close_epoch(LoopState()) is None


def test_the_training_loss_decides_only_within_the_run() -> None:
    chosen = ValidationSettings(best_after_share=0.5)
    for step, epochs, expected in ((49, 5, False), (50, 4, False), (50, 5, True), (100, 5, True)):
        state = LoopState(step=step, epoch_losses=[1.0] * epochs)
        assert may_judge_training_loss(state, 100, chosen) is expected


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40), st.integers(0, 5), st.floats(0, 0.2))
def test_best_is_the_lowest_and_patience_counts_real_gains(losses: list[float], patience: int, gain: float) -> None:
    chosen = ValidationSettings(early_stop_patience=patience, smallest_improvement=gain)
    state, reference, waited = LoopState(), math.inf, 0
    for step, loss in enumerate(losses, start=1):
        state.step = step
        assert judge(state, loss, chosen) == (loss < min(losses[: step - 1], default=math.inf))
        reference, waited = (loss, 0) if loss < reference * (1 - gain) else (reference, waited + 1)
        assert state.ended_early == (patience > 0 and waited >= patience)
    assert state.best_loss == min(losses)
    assert judge(state, math.nan, chosen) is False


def test_a_run_without_progress_ends_early_and_can_be_resumed(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = make_store()
    settings = short_run(max_steps=60, validate_every=2, learning_rate=1e-9, early_stop_patience=3)
    ended = train(checkpoint, store, tmp_path / "run", settings, Job())
    assert (ended.stopped, ended.summary.state, ended.summary.step) == (False, "finished", 6)
    again = train(checkpoint, store, tmp_path / "run", settings, Job(), resume=tmp_path / "run")
    assert again.summary.step == 12
    assert list(again.run.events("end"))[-1]["ended_early"] is True


def test_without_validation_the_smoothed_training_loss_chooses(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = short_run(validation="none", max_steps=40, best_after_share=0.5)
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    means = {}
    steps = list(run.events("step"))
    for event in run.events("smoothed_loss"):
        window = [item for item in steps if event["step"] - 5 * 4 < item["step"] <= event["step"]]
        means[event["step"]] = sum(item["loss"] for item in window) / len(window)
        assert event["loss"] == pytest.approx(means[event["step"]])
    assert min(means) == 20  # five epochs of four steps, and half of the run
    best = list(run.events("best"))[-1]
    assert best["step"] == min(means, key=means.__getitem__)
