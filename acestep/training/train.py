"""From a model, a tensor folder and settings to an adapter: sets a session up, runs the loop, says what came out."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from acestep.core.device import DeviceChoice, choose_device, free_memory, lacks_memory
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.core.paths import remove_leftovers
from acestep.core.words import counted
from acestep.model.checkpoints import Checkpoint
from acestep.model.identity import transformer_fingerprint
from acestep.model.quantising import require_quantising
from acestep.preprocess.store import TensorStore
from acestep.settings import PreviewSettings, TrainSettings
from acestep.training.checkpoints import resume_point, step_of
from acestep.training.compiling import compiled_blocks, wants_compiling
from acestep.training.data import EpochOrder, TrainingData, load_data
from acestep.training.ending import finish, write_what_was_learnt
from acestep.training.failures import explained, lost_a_process
from acestep.training.forecast import Forecast, expected_of_run
from acestep.training.loop import Session, fit, save, set_training
from acestep.training.opening import Inputs, open_session, take_up
from acestep.training.optimizers import rate_notes
from acestep.training.plan import Plan
from acestep.training.processes import Processes, start_processes
from acestep.training.recorder import MetricSink, Recorder, SilentRecorder
from acestep.training.recovery import Diverged
from acestep.training.requests import remove_requests
from acestep.training.runs import RunFolder, RunSummary, summarise
from acestep.training.schedules import warmup_length
from acestep.training.step_down import RECORD, Economy, NothingLeft, OutOfRoom, out_of_memory_elsewhere, step_down

CHANGEABLE_ON_RESUME = frozenset(
    [
        "compile",
        "device",
        "devices",
        "early_stop_patience",
        "epochs",
        "gradient_checkpointing",
        "keep_last",
        "log_every",
        "max_steps",
        "on_out_of_memory",
        "save_every_epochs",
        "save_every_steps",
        "tensorboard",
        *PreviewSettings.model_fields,
    ]
)
"""Settings a resumed run may change. Any other would make it a different run under the same name."""

Approval = Callable[[Forecast], bool]
"""Shown what a run will take before it begins; says whether to go on."""


class NotApproved(UserError):
    """Whoever was shown what the run will take did not want it."""


RAISED_BY_ALL = (Diverged, NothingLeft, NotApproved, Stopped)
"""What every process of a run raises alike, and the first one tells."""


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
    approve: Approval | None = None,
) -> TrainOutcome:
    """Train an adapter in the run folder `out`, or go on with the run or checkpoint `resume`.

    A stop asked for through `job` ends at the next step with a full checkpoint; before the first step of a new run
    Stopped is raised, and no folder stays. With `approve`, what the run will
    take is measured first, which changes nothing in it, and shown to that function; where it says no, NotApproved is
    raised and a new run leaves no folder. Raises UserError for anything that does not fit together, before a folder is
    made where that can be known.
    """
    started = time.perf_counter()
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    store.require_made_with(checkpoint)
    data = load_data(store, settings)
    order = EpochOrder(data, settings)
    plan = Plan.of(settings, order.steps_per_epoch)
    choice = choose_device(settings.device, settings.precision)
    require_quantising(settings.base_weights, choice.device)
    processes = start_processes(settings, choice)
    identity = _identity(checkpoint, store)
    point = resume_point(resume) if resume else None

    def folder() -> RunFolder:
        return _continued(point, settings, identity) if point else _new(out, settings, identity, plan, choice, data)

    run = _run_folder(processes, folder)
    try:
        economy = Economy.of(settings)
        inputs = Inputs(checkpoint, store, settings, economy, data, order, plan, choice, processes)
        return _train_in(run, inputs, point, approve, job, started)
    except Exception as error:
        told_by_the_first = isinstance(error, RAISED_BY_ALL) or lost_a_process(error.__cause__ or error)
        if processes.is_main or not told_by_the_first:
            raise
        # with any other code Fabric would kill the first process, which may still be writing
        raise SystemExit(0) from error
    finally:
        run.release()


def _run_folder(processes: Processes, make: Callable[[], RunFolder]) -> RunFolder:
    """The run's folder, made by the first process. Where that is refused, the others have nothing to do or say."""
    run = None
    if processes.is_main:
        try:
            run = make()
            return run
        finally:
            processes.from_main(str(run.path) if run else "")
    path = processes.from_main("")
    if not path:
        raise SystemExit(0)
    return RunFolder.open(Path(path))


def _economy(run: RunFolder, settings: TrainSettings) -> Economy:
    """How to save memory: as the run found that it must, or as the settings say."""
    found = run.record.get(RECORD)
    asked = Economy.of(settings)
    if found is None:
        return asked
    economy = Economy.parse(found, str(run.path / "run.json"))
    return economy.changed(gradient_checkpointing=max(economy.gradient_checkpointing, asked.gradient_checkpointing))


class Sessions:
    """The sessions of one run, one after the other: a step that does not fit into memory is made again in the next."""

    def __init__(self, inputs: Inputs, run: RunFolder, recorder: SilentRecorder, job: Job) -> None:
        self._inputs = replace(inputs, economy=_economy(run, inputs.settings))
        self._run = run
        self._recorder = recorder
        self._job = job
        self.current: Session | None = None

    def fit(self, point: Path | None, approve: Approval | None) -> Session:
        """Train to the end, from the checkpoint `point` if there is one; returns the last session."""
        self._begin(point, approve, announce=True)
        while (point := self._fit_or_step_down()) is not None:
            self.current = None  # its model goes before the next is loaded
            torch.compiler.reset()
            free_memory()
            self._begin(point, None, announce=False)
        assert self.current is not None
        return self.current

    def _begin(self, point: Path | None, approve: Approval | None, announce: bool) -> None:
        self.current = session = open_session(self._inputs, self._run, self._recorder)
        if approve:
            _have_approved(session, point, approve, self._job)
        if point:
            take_up(session, point)
        if announce:
            _announce(session, self._inputs.choice, self._job)
        set_training(session, True)

    def _fit_or_step_down(self) -> Path | None:
        """Train to the end, or up to a step that does not fit: returns the checkpoint before it, to go on from."""
        session = self.current
        assert session is not None
        try:
            wanted = wants_compiling(session.settings, session.processes.fabric.device)
            with compiled_blocks(session, self._job) if wanted else contextlib.nullcontext():
                fit(session, self._job)
            return None
        except OutOfRoom as failure:
            lacking = OutOfRoom(failure.windows, failure.frames)  # the one that was raised holds on to the whole pass
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise out_of_memory_elsewhere(session) from error
        session.optimizer.zero_grad(set_to_none=True)
        free_memory()
        save(session)
        economy, point = step_down(session, lacking)
        self._inputs = replace(self._inputs, economy=economy)
        return point


def _train_in(
    run: RunFolder, inputs: Inputs, point: Path | None, approve: Approval | None, job: Job, started: float
) -> TrainOutcome:
    """Train in a run folder that this process has for itself, and write down how it ended."""
    settings, processes = inputs.settings, inputs.processes
    log = run.event_log() if processes.is_main else None
    recorder = Recorder(log, _sinks(run, settings), job, settings.log_every) if log else SilentRecorder()
    sessions = Sessions(inputs, run, recorder, job)
    try:
        session = sessions.fit(point, approve)
        if processes.is_main:
            remove_requests(run.path)
        stopped = session.state.step < inputs.plan.total_steps and not session.state.ended_early
        adapter = finish(session, "stopped" if stopped else "finished")
    except (NotApproved, Stopped):  # before the first step
        recorder.close("failed")
        if processes.is_main and not point:
            run.discard()
        raise
    except BaseException as error:
        failed = sessions.current
        if failed and isinstance(error, Diverged) and processes.is_main:
            write_what_was_learnt(failed)
        reason = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
        if log:
            with contextlib.suppress(UserError):  # where the disk is full: the first error is the one to tell
                log.emit("end", state="failed", reason=reason)
        recorder.close("failed")
        told = explained(error, run.path, failed.state.step if failed else 0)
        if told is not None:
            raise told from error
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


def _have_approved(session: Session, point: Path | None, approve: Approval, job: Job) -> None:
    """Measure what the run will take and ask whether to go on. Raises NotApproved where the answer is no."""
    found = expected_of_run(session, step_of(point) if point else 0, job)
    answer = approve(found) if session.processes.is_main else True
    if not session.processes.from_main(answer):
        short = "memory" if found.memory.verdict == "does not fit" else "disk"
        raise NotApproved(
            f"The run was not started: its {short} does not suffice." if not found.fits else "The run was not started.",
            fix=f"Try {', or '.join(found.remedies[:2])}." if found.remedies else "Make room, or change the settings.",
        )


def _new(
    out: Path,
    settings: TrainSettings,
    identity: dict[str, Any],
    plan: Plan,
    choice: DeviceChoice,
    data: TrainingData,
) -> RunFolder:
    record = {"settings": settings.model_dump(mode="json"), **identity, "plan": asdict(plan), "device": str(choice)}
    return RunFolder.create(out, {**record, "data": data.facts()})


def _continued(point: Path, settings: TrainSettings, identity: dict[str, Any]) -> RunFolder:
    run = RunFolder.open(point)
    _require_same(run, settings, identity)
    run.claim()
    for folder in (run.path, run.checkpoints):
        remove_leftovers(folder)
    remove_requests(run.path)
    return run


def _sinks(run: RunFolder, settings: TrainSettings) -> list[MetricSink]:
    if not settings.tensorboard:
        return []
    from lightning_fabric.loggers import TensorBoardLogger

    return [TensorBoardLogger(root_dir=run.path, name="tensorboard", version="")]


def _identity(checkpoint: Checkpoint, store: TensorStore) -> dict[str, Any]:
    """What a run was made from, in a form that survives moving folders."""
    learned = [song for song in store.songs if not song.regularization]
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
            "songs": len(learned),
            "regularization_songs": len(store.songs) - len(learned),
            "audio_s": round(sum(song.duration_s for song in learned), 3),
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
    refused = [name for name in _changed(run, settings) if name not in CHANGEABLE_ON_RESUME]
    if refused:
        raise UserError(
            f"A resumed run cannot change {', '.join(refused)}.",
            fix=f"Leave them as they were or start a new run; {', '.join(sorted(CHANGEABLE_ON_RESUME))} may change.",
        )


def _changed(run: RunFolder, settings: TrainSettings) -> dict[str, list[Any]]:
    """The settings that differ from those the run began with: name → before, now."""
    recorded = TrainSettings.parse(run.record.get("settings", {}), str(run.path / "run.json")).model_dump(mode="json")
    wanted = settings.model_dump(mode="json")
    return {name: [value, wanted[name]] for name, value in recorded.items() if wanted[name] != value}


def _announce(session: Session, choice: DeviceChoice, job: Job) -> None:
    """Say and record the derived numbers of the run once: a user's log is a bug report."""
    settings, plan, data = session.settings, session.plan, session.data
    parameters = sum(parameter.numel() for parameter in session.adapter.parameters())
    learned = len(data.songs_to_learn)
    regularization = len(data.songs) - learned
    beside = f" beside {regularization} for regularization" if regularization else ""
    lines = [
        f"device {choice}",
        f"{counted(learned, 'songs')} to train on{beside}, "
        f"{counted(len(data.held_out), 'windows')} held out ({data.held_out_kind})",
        f"{counted(plan.total_steps, 'steps')}, {plan.steps_per_epoch} an epoch, "
        f"up to {counted(settings.batch_size * settings.gradient_accumulation, 'windows')} a step, "
        f"{counted(warmup_length(settings, plan.total_steps), 'steps')} of warm-up",
        f"{settings.adapter} on {counted(len(session.adapter.module_names), 'modules')}, "
        f"{parameters:,} parameters in fp32",
    ]
    for line in lines:
        job.say(line)
    passes, count = settings.gradient_accumulation, session.processes.count
    idle = [f"Devices with work: only {passes} of {count}; raise gradient_accumulation."] if passes < count else []
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
        changed=_changed(session.run, settings),
    )
