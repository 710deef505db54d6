"""Opening a session: model, adapter, optimizer and data laid out for the loop, and put where a checkpoint was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from acestep.adapters import TriggerTag, attach
from acestep.core.device import DeviceChoice
from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.training.averaging import make_averaging
from acestep.training.checkpoints import list_checkpoints, load_checkpoint, step_of
from acestep.training.data import EpochOrder, Flow, TrainingData
from acestep.training.forward import FlowModel, recompute_layers
from acestep.training.loop import Session
from acestep.training.optimizers import make_optimizer
from acestep.training.origin import training_note
from acestep.training.plan import Plan
from acestep.training.previews import Previews
from acestep.training.processes import Processes
from acestep.training.recorder import SilentRecorder
from acestep.training.runs import RunFolder
from acestep.training.schedules import warmup_length
from acestep.training.step_down import Economy
from acestep.training.validation import Validation


@dataclass(frozen=True)
class Inputs:
    """What a run is made from and what follows from it."""

    checkpoint: Checkpoint
    store: TensorStore
    settings: TrainSettings
    economy: Economy
    data: TrainingData
    order: EpochOrder
    plan: Plan
    choice: DeviceChoice
    processes: Processes


def open_session(inputs: Inputs, run: RunFolder, recorder: SilentRecorder) -> Session:
    """Load the transformer, attach a fresh adapter, and lay everything out for the loop."""
    checkpoint, settings, economy, data = inputs.checkpoint, inputs.settings, inputs.economy, inputs.data
    processes = inputs.processes
    device = processes.fabric.device
    transformer = load_transformer(checkpoint, inputs.choice.dtype, device, economy.base_weights)
    recompute_layers(transformer, economy.gradient_checkpointing)
    torch.manual_seed(settings.seed)  # the adapter's first weights
    adapter = attach(transformer, settings)
    config = checkpoint.config
    flow = Flow(
        mu=config.timestep_mu if settings.timestep_mu is None else settings.timestep_mu,
        sigma=config.timestep_sigma if settings.timestep_sigma is None else settings.timestep_sigma,
    )
    model = FlowModel(transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), device)
    model.autocast = processes.autocast
    warmup_steps = warmup_length(settings, inputs.plan.total_steps)
    optimizer = make_optimizer(adapter.parameters(), settings, warmup_steps, scaled=processes.scaler is not None)
    info = inputs.store.info
    return Session(
        settings=settings,
        economy=economy,
        plan=inputs.plan,
        processes=processes,
        model=model,
        adapter=adapter,
        tag=TriggerTag(
            info.trigger_word, info.tag_position if settings.tag_position is None else settings.tag_position
        ),
        optimizer=processes.fabric.setup_optimizers(optimizer),
        averaging=make_averaging(adapter, optimizer, settings),
        # The order goes by the lengths of the settings, so shorter windows leave epochs and steps as they are.
        data=replace(data, room=economy.longest_window),
        order=inputs.order,
        flow=flow,
        validation=Validation(data.held_out, settings, flow, economy.pass_size) if data.held_out else None,
        run=run,
        record=recorder,
        previews=Previews(checkpoint, inputs.choice),
    )


def take_up(session: Session, point: Path) -> None:
    """Put the session where the checkpoint was written."""
    state = session.state = load_checkpoint(
        point, session.adapter, session.optimizer, session.averaging, session.processes.scaler
    )
    session.resumed_at = state.step
    session.curve = {step: loss for step, loss in session.run.story().validations if step <= state.step}
    if state.ended_early:  # who resumes such a run wants to go on: the patience begins anew
        state.ended_early, state.judgements_without_gain = False, 0
    kept = training_note(session.run.best).get("step")
    if kept not in (None, state.best_step):  # the run had come further than this checkpoint: best/ is of a later step
        state.best_loss = _loss_judged(session.run, kept)
        state.best_step = None if state.best_loss is None else kept
    later = [path.name for path in list_checkpoints(session.run.checkpoints) if step_of(path) > state.step]
    if later:
        session.record.warn(
            state.step,
            f"The run goes on from an earlier step, so at its next save these are removed: {', '.join(later)}.",
        )


def _loss_judged(run: RunFolder, step: int) -> float | None:
    """The loss by which a step was judged, from the log; of a step that was done twice, the last."""
    judged = (event for event in run.events() if event.get("kind") in ("validation", "smoothed_loss"))
    return {event["step"]: event["loss"] for event in judged}.get(step)
