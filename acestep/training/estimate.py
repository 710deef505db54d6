"""Before a run: what it will cost, and which modules the songs would change most. Nothing is trained or kept."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from acestep.core.device import DeviceChoice, choose_device, free_memory, lacks_memory
from acestep.core.errors import UserError
from acestep.core.events import EventLog
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.model.quantising import require_quantising
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.training.data import EpochOrder, load_data
from acestep.training.forecast import Forecast, forecast
from acestep.training.loop import Session
from acestep.training.opening import Inputs, open_session
from acestep.training.plan import Plan
from acestep.training.processes import start_processes
from acestep.training.recorder import Recorder
from acestep.training.runs import RunFolder
from acestep.training.sensitivity import Score, Sensitivity, adapted_scores, measure_sensitivity
from acestep.training.step_down import Economy


@dataclass(frozen=True)
class Estimate:
    """Cost and sensitivity. `adapted` are the scores of the modules that the settings adapt, in model order."""

    forecast: Forecast
    sensitivity: Sensitivity
    adapted: list[Score]


def estimate(
    checkpoint: Checkpoint, store: TensorStore, out: Path, settings: TrainSettings, batches: int, job: Job
) -> Estimate:
    """Measure a run with these settings on these tensors; `out` is where it would be written. No file stays behind."""
    store.require_made_with(checkpoint)
    with tempfile.TemporaryDirectory(prefix="acestep-estimate-") as folder:
        session, choice = unrecorded_session(checkpoint, store, settings, Path(folder), job)
        expected = forecast(session, out, job)
        if settings.base_weights != "full":  # gradients are taken of whole weights
            del session
            free_memory()
            whole = settings.changed(base_weights="full")
            session, choice = unrecorded_session(checkpoint, store, whole, Path(folder), job)
        transformer, data, flow, model = session.adapter.transformer, session.data, session.flow, session.model
        session.adapter.detach_from_model()
        del session
        free_memory()
    try:
        sensitivity = measure_sensitivity(transformer, model, data, settings, flow, batches, choice, job)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise UserError(
            "The memory does not suffice to measure the model's gradients.",
            fix=f"Try {expected.remedies[0]}." if expected.remedies else "Close other programs that use the card.",
        ) from error
    return Estimate(expected, sensitivity, adapted_scores(sensitivity, transformer, settings))


def unrecorded_session(
    checkpoint: Checkpoint, store: TensorStore, settings: TrainSettings, folder: Path, job: Job
) -> tuple[Session, DeviceChoice]:
    """A session as a run opens it, and its device. `folder` stands for the run's, though no step is recorded."""
    data = load_data(store, settings)
    order = EpochOrder(data, settings)
    plan = Plan.of(settings, order.steps_per_epoch)
    choice = choose_device(settings.device, settings.precision)
    recorder = Recorder(EventLog(folder / "events.jsonl"), [], job, settings.log_every)
    run = RunFolder(folder, {})
    require_quantising(settings.base_weights, choice.device)
    processes = start_processes(settings, choice)
    inputs = Inputs(checkpoint, store, settings, Economy.of(settings), data, order, plan, choice, processes)
    return open_session(inputs, run, recorder), choice
