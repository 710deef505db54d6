"""The one training loop, for every adapter, optimizer and device.

`fit` reads from top to bottom: judge, keep, stop, one optimizer step, record. It runs one pass more than there
are steps, so the end of a run is judged and kept by the same lines as its middle.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from acestep.adapters import Adapter, TriggerTag, write_adapter_files
from acestep.adapters.card import write_card
from acestep.core.errors import Stopped
from acestep.core.jobs import Job, Stage
from acestep.core.paths import atomic_folder
from acestep.core.words import counted
from acestep.settings import TrainSettings
from acestep.training.averaging import Averaging
from acestep.training.card import card_facts
from acestep.training.checkpoints import LoopState, prune_checkpoints, save_checkpoint
from acestep.training.data import EpochOrder, Flow, Sample, TrainingData, derived_generator, draw_batch, step_strata
from acestep.training.forward import FlowModel
from acestep.training.judge import close_epoch, judge, may_judge_training_loss, note_step
from acestep.training.objective import weighted
from acestep.training.optimizers import set_learning_rate
from acestep.training.plan import Plan
from acestep.training.previews import Previews
from acestep.training.processes import Processes
from acestep.training.recorder import SilentRecorder
from acestep.training.recovery import (
    GoodState,
    is_failing,
    leave_failing_steps,
    note_before_update,
    note_skipped,
    refuse_spoilt_weights,
)
from acestep.training.requests import RequestFiles
from acestep.training.runs import RunFolder
from acestep.training.schedules import learning_rate
from acestep.training.step_down import Economy, room_for
from acestep.training.validation import Validation

TIMED_STEPS = 10
"""After so many steps the length of the run is told."""


@dataclass
class Session:
    """Everything a run works with. Only `state`, the adapter and the optimizer change while it goes."""

    settings: TrainSettings
    economy: Economy
    plan: Plan
    processes: Processes
    model: FlowModel
    adapter: Adapter
    tag: TriggerTag
    optimizer: torch.optim.Optimizer
    averaging: Averaging
    data: TrainingData
    order: EpochOrder
    flow: Flow
    validation: Validation | None
    run: RunFolder
    record: SilentRecorder
    previews: Previews
    state: LoopState = field(default_factory=LoopState)
    resumed_at: int | None = None
    clock: Callable[[], float] = time.perf_counter
    curve: dict[int, float] = field(default_factory=dict)
    """Validation losses so far, by step."""
    good: GoodState | None = None
    """Where to go back to when steps fail; None while no run goes on."""


def fit(session: Session, job: Job) -> None:
    """Train from the session's state to the end of the plan, or until the job is asked to stop.

    Raises Stopped where that is before the first step.
    """
    plan, state = session.plan, session.state
    session.good = GoodState.of(session)
    requests = RequestFiles(session.run.path, job.clock)
    with job.stage("train", plan.total_steps, "steps", already=state.step) as stage:
        while True:
            if session.processes.is_main:
                requests.collect(job)
            finished = state.step >= plan.total_steps
            stopping = not finished and session.processes.any(job.stop_requested)
            if stopping and not state.step and session.resumed_at is None:
                raise Stopped  # nothing is learnt, so there is nothing to keep
            if finished or stopping:
                leave_failing_steps(session)
            fresh = state.step != session.resumed_at

            unjudged = session.validation and state.validated_at != state.step
            if unjudged and (finished or (due(state.step, plan.validate_every) and not stopping)):
                validate(session)
            elif not session.validation and fresh and state.step and due(state.step, plan.steps_per_epoch):
                judge_training_loss(session)
            finished = finished or state.ended_early
            saving = session.processes.any(job.take_request("save")) or finished or stopping
            planned = any(due(state.step, n) for n in plan.save_every) and not is_failing(state)
            if fresh and state.step and (saving or planned):
                save(session)
            if session.processes.is_main and preview_due(session, job, finished) and not stopping:
                session.previews.play(session, job)
            if finished or stopping:
                break

            # ---------------------------------------------------------------- one optimizer step
            set_learning_rate(session.optimizer, learning_rate(session.settings, state.step, plan.length))
            stats = optimizer_step(session, *steps_of(session, state.step))
            # ----------------------------------------------------------------

            state.step += 1
            report(session, stats, stage)
            if stage.done - stage.already == TIMED_STEPS:
                say_time_left(session, stage, job)


def say_time_left(session: Session, stage: Stage, job: Job) -> None:
    """After the first steps: how long the rest will take, from what these took."""
    left_s = stage.remaining_s(job.clock())
    if left_s is not None and session.processes.is_main:
        steps = stage.total - stage.done
        session.record.event("time_left", step=session.state.step, seconds=round(left_s, 1), steps=steps)
        rest = counted(steps, "steps")
        job.say(f"About {left_s / 60:.0f} min for another {rest}." if left_s > 90 else f"About {left_s:.0f} s.")


def due(step: int, every: int) -> bool:
    """Whether periodic work falls on this step; step 0 counts, so that a run begins with a judgement."""
    return every > 0 and step % every == 0


def preview_due(session: Session, job: Job, finished: bool) -> bool:
    """Whether previews were asked for, or fall on this step or on the end of a run that plays any."""
    asked, step, every = job.take_request("preview"), session.state.step, session.plan.preview_every
    planned = bool(every) and (finished or any(due(step, steps) for steps in every))
    return asked or (planned and step > 0 and step != session.resumed_at)


def steps_of(session: Session, step: int) -> tuple[int, list[list[Sample]]]:
    """The epoch of an optimizer step and its micro-batches."""
    epoch, index = divmod(step, session.plan.steps_per_epoch)
    return epoch, session.order.steps(epoch)[index]


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did."""

    loss: float
    grad_norm: float
    learning_rate: float
    epoch: int
    samples: int
    seconds: float
    data_seconds: float
    applied: bool


def optimizer_step(session: Session, epoch: int, micro_batches: list[list[Sample]]) -> StepStats:
    """Accumulate the gradient of Σ weight · loss / samples of the step, clip it, and update the adapter.

    A step whose loss or gradient is not a number changes nothing. Raises OutOfRoom where a pass does not fit into
    memory; adapter and optimizer are then as they were.
    """
    started = session.clock()
    with room_for(session, micro_batches):
        total, data_seconds = accumulate(session, epoch, micro_batches)
    loss_value = float(session.processes.add_up(session.adapter, total))
    grad_norm = clip(session)
    applied = math.isfinite(loss_value) and math.isfinite(grad_norm)
    if applied:
        note_before_update(session, loss_value)
        session.optimizer.step()
        session.averaging.update(session.state.step + 1)
    else:
        session.processes.note_overflow()
    session.optimizer.zero_grad(set_to_none=True)
    return StepStats(
        loss=loss_value,
        grad_norm=grad_norm,
        learning_rate=session.optimizer.param_groups[0]["lr"],
        epoch=epoch,
        samples=sum(len(batch) for batch in micro_batches),
        seconds=session.clock() - started,
        data_seconds=data_seconds,
        applied=applied,
    )


def accumulate(session: Session, epoch: int, micro_batches: list[list[Sample]]) -> tuple[torch.Tensor, float]:
    """Add up the gradients of this process's passes; returns their loss and the seconds spent on their data."""
    settings, data_seconds = session.settings, 0.0
    total = torch.zeros((), device=session.model.device)
    samples = [sample for batch in micro_batches for sample in batch]
    strata = step_strata(samples, epoch, settings)
    for number, micro_batch in session.processes.share(micro_batches):
        # Dropout inside the adapter is the only draw from torch's global generator; each batch has its own seed.
        torch.manual_seed(derived_generator(settings.seed, "dropout", session.state.step, number).initial_seed())
        for part in session.economy.parts(micro_batch):
            waiting_since = session.clock()
            batch = draw_batch(part, epoch, session.data, settings, session.flow, strata)
            data_seconds += session.clock() - waiting_since
            items = weighted(session.model.item_losses(batch, settings.condition_dropout), batch.t, settings)
            # Over the number of samples, not the sum of weights: a weight changes no other sample's part.
            loss = (items * batch.weights.to(items.device)).sum() / len(samples)
            session.processes.fabric.backward(loss)
            total += loss.detach()
    return total, data_seconds


def clip(session: Session) -> float:
    """Scale the gradient down to the longest allowed norm; returns its norm before."""
    longest = session.settings.max_grad_norm or math.inf
    norm = session.processes.fabric.clip_gradients(
        session.model.transformer, session.optimizer, max_norm=longest, error_if_nonfinite=False
    )
    return float(norm)


def report(session: Session, stats: StepStats, stage: Stage) -> None:
    """Write the step to the log and the progress; go back, or end the run, when steps keep failing."""
    state = session.state
    state.samples_seen += stats.samples
    note_step(state, stats.loss, stats.samples)
    session.record.step(state.step, stats)
    stage.advance(note=f"epoch {stats.epoch + 1}, loss {stats.loss:.4f}")
    if stats.applied:
        state.bad_steps = 0
        return
    diagnosis = note_skipped(session, stats.learning_rate)
    if diagnosis is not None:
        save(session)
        raise diagnosis


def validate(session: Session) -> None:
    """Judge the adapter on the held-out windows and keep it in best/ when it is the best so far."""
    assert session.validation is not None
    state = session.state
    set_training(session, False)
    with session.averaging.in_use():
        result = session.validation.run(session.model) if session.processes.is_main else None
    set_training(session, True)
    result = session.processes.from_main(result)
    assert result is not None
    state.last_validation, state.validated_at = result.loss, state.step
    session.record.validation(state.step, result)
    session.curve[state.step] = result.loss
    if not state.step:
        state.reference_loss = result.loss  # no adapter to keep yet: it is the measure the adapter has to beat
    elif judge(state, result.loss, session.settings):
        keep_best(session, f"lowest validation loss so far, {result.loss:.5f}")


def judge_training_loss(session: Session) -> None:
    """At the end of an epoch without validation: judge by the training loss averaged over five epochs."""
    state = session.state
    loss = close_epoch(state)
    if loss is None or not may_judge_training_loss(state, session.plan.total_steps, session.settings):
        return
    session.record.event("smoothed_loss", step=state.step, loss=loss)
    if judge(state, loss, session.settings):
        keep_best(session, f"lowest training loss over five epochs so far, {loss:.5f}")


def keep_best(session: Session, reason: str) -> None:
    refuse_spoilt_weights(session)
    write_adapter(session, session.run.best, session.state.step, reason)
    session.record.event("best", step=session.state.step, loss=session.state.best_loss)


def set_training(session: Session, training: bool) -> None:
    """Switch the adapter's dropout on or off; the base model has none."""
    session.model.transformer.train(training)


def save(session: Session) -> None:
    """Write a checkpoint and remove those beyond the number to keep."""
    leave_failing_steps(session)
    refuse_spoilt_weights(session)
    if not session.processes.is_main:
        return
    run, state, scaler = session.run, session.state, session.processes.scaler
    path = save_checkpoint(
        run.checkpoints, session.adapter, session.tag, session.optimizer, session.averaging, state, scaler
    )
    session.record.event("checkpoint", step=state.step, path=path.name)
    try:
        prune_checkpoints(run.checkpoints, session.settings.keep_last, state.step)
    except OSError as error:  # another program has one open; the next time will do
        session.record.warn(state.step, f"An old checkpoint cannot be removed ({error.strerror or error}).")


def write_adapter(session: Session, folder: Path, step: int, reason: str) -> None:
    """Write the adapter as it is now, with a card, and a note on which step it is and why."""
    if not session.processes.is_main:
        return
    with atomic_folder(folder) as temporary, session.averaging.in_use():
        write_adapter_files(session.adapter, temporary, session.tag)
        describe_adapter(session, temporary, step, reason)


def describe_adapter(session: Session, folder: Path, step: int, reason: str) -> None:
    """Write training.json and the card (README.md) beside an adapter's files."""
    note = {"step": step, "of": session.plan.total_steps, "reason": reason, "run": session.run.path.name}
    (folder / "training.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    curve = [(at, loss) for at, loss in session.curve.items() if math.isfinite(loss)]
    in_force = {**session.settings.model_dump(mode="json"), **session.economy.in_force()}
    write_card(folder, card_facts(session.run, note, curve, in_force))
