"""From a model, a tensor folder and settings to an adapter: sets a session up, runs the loop, says what came out."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from acestep.adapters import TriggerTag, attach
from acestep.core.device import DeviceChoice, choose_device
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import atomic_folder, remove_leftovers
from acestep.model.checkpoints import Checkpoint
from acestep.model.identity import transformer_fingerprint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.preprocess.store import TensorStore
from acestep.settings import PreviewSettings, TrainSettings
from acestep.training.averaging import make_averaging
from acestep.training.checkpoints import load_checkpoint, resume_point
from acestep.training.compiling import compile_blocks, wants_compiling
from acestep.training.data import EpochOrder, Flow, TrainingData, load_data
from acestep.training.forward import FlowModel
from acestep.training.loop import Plan, Session, describe_adapter, fit, set_training, write_adapter
from acestep.training.optimizers import make_optimizer, rate_notes
from acestep.training.previews import Previews
from acestep.training.processes import Processes, start_processes
from acestep.training.recorder import MetricSink, Recorder, SilentRecorder
from acestep.training.requests import remove_requests
from acestep.training.runs import RunFolder, RunSummary, summarise
from acestep.training.schedules import warmup_length
from acestep.training.validation import Validation

CHANGEABLE_ON_RESUME = frozenset(
    [
        "compile",
        "device",
        "devices",
        "early_stop_patience",
        "epochs",
        "keep_last",
        "log_every",
        "max_steps",
        "save_every_epochs",
        "save_every_steps",
        "tensorboard",
        *PreviewSettings.model_fields,
    ]
)
"""Settings a resumed run may change. Any other would make it a different run under the same name."""


@dataclass(frozen=True)
class TrainOutcome:
    """What a run left behind. `adapter` is the folder to load in other programs."""

    run: RunFolder
    adapter: Path
    stopped: bool
    summary: RunSummary
    modules: int
    parameters: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run.path),
            "adapter": str(self.adapter),
            "stopped": self.stopped,
            "modules": self.modules,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 3),
            **{
                key: value
                for key, value in self.summary.to_dict().items()
                if key not in ("path", "settings", "adapter")
            },
        }


def train(
    checkpoint: Checkpoint,
    store: TensorStore,
    out: Path,
    settings: TrainSettings,
    job: Job,
    resume: Path | None = None,
) -> TrainOutcome:
    """Train an adapter in the run folder `out`, or go on with the run or checkpoint `resume`.

    A stop asked for through `job` ends at the next step with a full checkpoint. Raises UserError for anything
    that does not fit together, before a folder is made where that can be known.
    """
    with contextlib.ExitStack() as held:
        return _train(checkpoint, store, out, settings, job, resume, held)


def _train(
    checkpoint: Checkpoint,
    store: TensorStore,
    out: Path,
    settings: TrainSettings,
    job: Job,
    resume: Path | None,
    held: contextlib.ExitStack,
) -> TrainOutcome:
    """`train`; what is held meanwhile is entered into `held`."""
    started = time.perf_counter()
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    store.require_made_with(checkpoint)
    data = load_data(store, settings)
    order = EpochOrder(data, settings)
    plan = Plan.of(settings, order.steps_per_epoch)
    choice = choose_device(settings.device, settings.precision)
    processes = start_processes(settings, choice)
    identity = _identity(checkpoint, store)
    point = resume_point(resume) if resume else None
    if processes.is_main:
        run = _continued(point, settings, identity) if point else _new(out, settings, identity, plan, choice)
        held.enter_context(run.hold())
    path = processes.from_main(str(run.path) if processes.is_main else "")
    if not processes.is_main:
        run = RunFolder.open(Path(path))
    log = run.event_log() if processes.is_main else None
    recorder = Recorder(log, _sinks(run, settings), job, settings.log_every) if log else SilentRecorder()
    try:
        session = open_session(Inputs(checkpoint, store, settings, data, order, plan), choice, processes, run, recorder)
        if point:
            _take_up(session, point)
        _announce(session, choice, job)
        set_training(session, True)
        if wants_compiling(settings, processes.fabric.device):
            compile_blocks(session, job)
        fit(session, job)
        if processes.is_main:
            remove_requests(run.path)
        stopped = session.state.step < plan.total_steps and not session.state.ended_early
        adapter = _finish(session, "stopped" if stopped else "finished")
    except BaseException as error:
        reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        if log:
            log.emit("end", state="failed", reason=reason)
        recorder.close("failed")
        raise
    recorder.close("success")
    processes.wait()
    return TrainOutcome(
        run=run,
        adapter=adapter,
        stopped=stopped,
        summary=summarise(run),
        modules=len(session.adapter.module_names),
        parameters=sum(parameter.numel() for parameter in session.adapter.parameters()),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class Inputs:
    """What a run is made from and what follows from it."""

    checkpoint: Checkpoint
    store: TensorStore
    settings: TrainSettings
    data: TrainingData
    order: EpochOrder
    plan: Plan


def _new(out: Path, settings: TrainSettings, identity: dict[str, Any], plan: Plan, choice: DeviceChoice) -> RunFolder:
    record = {"settings": settings.model_dump(mode="json"), **identity, "plan": asdict(plan), "device": str(choice)}
    return RunFolder.create(out, record)


def _continued(point: Path, settings: TrainSettings, identity: dict[str, Any]) -> RunFolder:
    run = RunFolder.open(point)
    _require_same(run, settings, identity)
    for folder in (run.path, run.checkpoints):
        remove_leftovers(folder)
    remove_requests(run.path)
    return run


def _take_up(session: Session, point: Path) -> None:
    """Put the session where the checkpoint was written."""
    session.state = load_checkpoint(point, session.adapter, session.optimizer, session.averaging)
    session.resumed_at = session.state.step
    session.curve = _curve(session.run, session.state.step)
    if session.state.ended_early:  # who resumes such a run wants to go on: the patience begins anew
        session.state.ended_early, session.state.judgements_without_gain = False, 0


def open_session(
    inputs: Inputs, choice: DeviceChoice, processes: Processes, run: RunFolder, recorder: SilentRecorder
) -> Session:
    checkpoint, settings, data = inputs.checkpoint, inputs.settings, inputs.data
    device = processes.fabric.device
    transformer = load_transformer(checkpoint, choice.dtype, device)
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    torch.manual_seed(settings.seed)  # the adapter's first weights
    adapter = attach(transformer, settings)
    config = checkpoint.config
    flow = Flow(
        mu=config.timestep_mu if settings.timestep_mu is None else settings.timestep_mu,
        sigma=config.timestep_sigma if settings.timestep_sigma is None else settings.timestep_sigma,
    )
    model = FlowModel(transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), device)
    model.autocast = processes.autocast
    optimizer = make_optimizer(adapter.parameters(), settings, warmup_length(settings, inputs.plan.total_steps))
    info = inputs.store.info
    return Session(
        settings=settings,
        plan=inputs.plan,
        processes=processes,
        model=model,
        adapter=adapter,
        tag=TriggerTag(
            info.trigger_word, info.tag_position if settings.tag_position is None else settings.tag_position
        ),
        optimizer=processes.fabric.setup_optimizers(optimizer),
        averaging=make_averaging(adapter, optimizer, settings),
        data=data,
        order=inputs.order,
        flow=flow,
        validation=Validation(data.held_out, settings, flow) if data.held_out else None,
        run=run,
        record=recorder,
        previews=Previews(checkpoint, choice),
    )


def _sinks(run: RunFolder, settings: TrainSettings) -> list[MetricSink]:
    if not settings.tensorboard:
        return []
    from lightning_fabric.loggers import TensorBoardLogger

    return [TensorBoardLogger(root_dir=run.path, name="tensorboard", version="")]


def _identity(checkpoint: Checkpoint, store: TensorStore) -> dict[str, Any]:
    """What a run was made from, in a form that survives moving folders."""
    return {
        "model": {
            "name": checkpoint.name,
            "variant": checkpoint.variant.name,
            "path": str(checkpoint.dit),
            "fingerprint": transformer_fingerprint(checkpoint),
        },
        "tensors": {
            "path": str(store.folder),
            "dataset": store.info.dataset_name,
            "songs": len(store.songs),
            "audio_s": round(sum(song.duration_s for song in store.songs), 3),
            "fingerprint": store.fingerprint(),
            "trigger_word": store.info.trigger_word,
        },
    }


def _require_same(run: RunFolder, settings: TrainSettings, identity: dict[str, Any]) -> None:
    """Refuse to go on with other settings, another model or other tensors than the run began with."""
    for part, name in (("model", "model"), ("tensors", "tensor folder")):
        recorded = run.record.get(part, {})
        if recorded.get("fingerprint") != identity[part]["fingerprint"]:
            raise UserError(
                f"The {name} {identity[part]['path']} is not the one the run {run.path.name} was trained on.",
                fix=f"Give the one recorded in its run.json ({recorded.get('path')}), or start a new run.",
            )
    recorded = TrainSettings.parse(run.record.get("settings", {}), str(run.path / "run.json"))
    wanted = settings.model_dump()
    changed = [name for name, value in recorded.model_dump().items() if wanted[name] != value]
    refused = [name for name in changed if name not in CHANGEABLE_ON_RESUME]
    if refused:
        raise UserError(
            f"A resumed run cannot change {', '.join(refused)}.",
            fix=f"Leave them as they were or start a new run; {', '.join(sorted(CHANGEABLE_ON_RESUME))} may change.",
        )


def _announce(session: Session, choice: DeviceChoice, job: Job) -> None:
    """Say and record the derived numbers of the run once: a user's log is a bug report."""
    settings, plan, data = session.settings, session.plan, session.data
    parameters = sum(parameter.numel() for parameter in session.adapter.parameters())
    lines = [
        f"device {choice}",
        f"{len(data.songs)} songs to train on, {len(data.held_out)} windows held out ({data.held_out_kind})",
        f"{plan.total_steps} steps, {plan.steps_per_epoch} an epoch, "
        f"up to {settings.batch_size * settings.gradient_accumulation} windows a step, "
        f"{warmup_length(settings, plan.total_steps)} steps of warm-up",
        f"{settings.adapter} on {len(session.adapter.module_names)} modules, {parameters:,} parameters in fp32",
    ]
    for line in lines:
        job.say(line)
    passes, count = settings.gradient_accumulation, session.processes.count
    idle = [f"Only {passes} of {count} devices have work: raise gradient_accumulation."] if passes < count else []
    for note in (*idle, *data.notes, *rate_notes(settings), *session.adapter.notes):
        session.record.warn(session.state.step, note)
    session.record.event(
        "start" if session.resumed_at is None else "resume",
        step=session.state.step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        device=str(choice),
        parameters=parameters,
        modules=len(session.adapter.module_names),
        summary=lines,
    )


def _finish(session: Session, state: str) -> Path:
    """Write final/: the best step where validation found one, else the last; and the end of the log."""
    run, loop = session.run, session.state
    if not session.processes.is_main:
        return run.final
    if loop.best_step is not None and loop.best_step != loop.step and run.best.is_dir():
        judged = "validation" if session.validation else "training"
        reason = f"lowest {judged} loss, {loop.best_loss:.5f} at step {loop.best_step}"
        _copy_best(session, loop.best_step, reason)
        step = loop.best_step
    else:
        step = loop.step
        reason = "the last step, which is also the best" if loop.best_step == step else "the last step"
        write_adapter(session, run.final, step, reason)
    if loop.ended_early:
        session.record.warn(loop.step, f"Ended early: {loop.judgements_without_gain} judgements without improvement.")
    session.record.event(
        "end", state=state, step=loop.step, final_step=step, reason=reason, ended_early=loop.ended_early
    )
    return run.final


def _copy_best(session: Session, step: int, reason: str) -> None:
    with atomic_folder(session.run.final) as temporary:
        shutil.copytree(session.run.best, temporary, dirs_exist_ok=True)
        describe_adapter(session, temporary, step, reason)


def _curve(run: RunFolder, step: int) -> dict[int, float]:
    """Validation losses up to a step, from the log; of a step that was done twice, the last."""
    events = (event for event in run.events("validation") if event["step"] <= step)
    return {event["step"]: event["loss"] for event in events if event["loss"] is not None}
