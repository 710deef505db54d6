"""Training in the background of the app: begin a run, go on with one, measure one, ask one for something."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job, Request, as_part_of_this_job
from acestep.core.paths import inside
from acestep.settings import TrainSettings
from acestep.settings.command_line import options_of
from acestep.training.requests import ask
from acestep.training.runs import RunFolder, new_run_path, summarise
from acestep.training.story import UNFINISHED
from acestep.ui.app import App
from acestep.ui.train_live import RunView

if TYPE_CHECKING:
    from acestep.model.checkpoints import Checkpoint
    from acestep.preprocess.store import TensorStore
    from acestep.training.outlook import Measured

KIND = "train"
LOOK_EVERY_S = 0.5
"""How often a run in a process of its own is looked at."""


def start_run(app: App, settings: TrainSettings, name: str = "") -> Path:
    """Begin a run on the chosen model and tensors under the app's output folder; returns its folder at once."""
    checkpoint, store = chosen_inputs(app)
    folder = inside(app.output, new_run_path(app.output, name or store.info.dataset_name).name)
    _begin(app, checkpoint, store, folder, settings, None)
    return folder


def resume_run(app: App, point: Path, changes: dict[str, Any] | None = None) -> Path:
    """Go on with a run, or from one of its checkpoints, with the settings it recorded and `changes` to them.

    Raises UserError where its model or tensors are gone, and for a finished run without changes, which would do
    nothing. Which settings may change is the run's own rule.
    """
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.store import TensorStore

    run = RunFolder.open(point)
    if run.is_running():
        raise UserError(f"The run {run.path.name} is running.", fix="Wait for it or stop it first.")
    if not changes and point.resolve() == run.path and summarise(run).state == "finished":
        raise UserError(
            f"The run {run.path.name} is finished.",
            fix="To train it for longer, open it, raise the length in the form of Train, and resume it there with "
            "the form's length.",
        )
    recorded = run.record.get("settings", {})
    settings = TrainSettings.parse({**recorded, **(changes or {})}, str(run.path / "run.json"))
    model = app.roots.resolve(run.origin("model"), f"The model of {run.path.name}")
    tensors = app.roots.resolve(run.origin("tensors"), f"The tensor folder of {run.path.name}")
    _begin(app, resolve_checkpoint(str(model)), TensorStore.open(tensors), run.path, settings, point)
    return run.path


def ask_run(app: App, folder: Path, name: Request) -> None:
    """Ask a run that goes on, here or in another program, to save or to play previews."""
    work = app.background.current
    if work and work.running and work.subject == folder:
        work.job.request(name)
    else:
        ask(RunFolder.open(folder), name)


def measure_run(app: App, settings: TrainSettings, found: list[Measured]) -> None:
    """Measure time, memory and disk of a run in the background; what was measured becomes the item of `found`."""
    if settings.devices * settings.num_nodes > 1:
        raise UserError("Time and memory are measured on one device.", fix='Set "devices" to 1 while you measure.')
    checkpoint, store = chosen_inputs(app)

    def measure(job: Job) -> Measured:
        import tempfile

        from acestep.core.device import free_memory
        from acestep.training.estimate import unrecorded_session  # torch comes in here
        from acestep.training.forecast import forecast
        from acestep.training.outlook import Measured

        store.require_made_with(checkpoint)
        with tempfile.TemporaryDirectory(prefix="acestep-measure-") as folder:
            session, _ = unrecorded_session(checkpoint, store, settings, Path(folder), job)
            measured = Measured(settings, forecast(session, app.output, job))
            del session
        free_memory()
        found[:] = [measured]
        return measured

    app.start_work("measure", "Measuring a run", measure)


def chosen_inputs(app: App) -> tuple[Checkpoint, TensorStore]:
    """The model and the tensor folder the user has chosen. Raises UserError where one is missing."""
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.store import TensorStore

    chosen = app.workspace
    if not chosen.model:
        raise UserError("No model is chosen.", fix="Choose one in Service first.")
    if not chosen.tensors:
        raise UserError("No tensor folder is chosen.", fix="Choose one above, or encode songs in Preprocess.")
    return resolve_checkpoint(chosen.model), TensorStore.open(chosen.tensors)


def _begin(
    app: App, checkpoint: Checkpoint, store: TensorStore, folder: Path, settings: TrainSettings, resume: Path | None
) -> None:
    def here(job: Job) -> Any:
        from acestep.core.gpu import watched_gpu
        from acestep.training.train import train  # torch comes in here

        with watched_gpu(job):
            return train(checkpoint, store, folder, settings, job, resume)

    def in_its_own_process(job: Job) -> None:
        goal = ["--resume", str(resume)] if resume else ["--out", str(folder)]
        places = ["--model", str(checkpoint.dit), "--tensors", str(store.folder)]
        every_setting = options_of(settings, dict.fromkeys(TrainSettings.model_fields, ...))
        _follow([*places, *goal, *every_setting], folder, job)

    several = settings.devices * settings.num_nodes > 1
    app.start_work(KIND, f"Training {folder.name}", in_its_own_process if several else here, folder)
    app.choose(run=str(folder), preview_step=0)


# several devices --------------------------------------------------------------------------------------------------
# Fabric starts the helpers of a run by running this program's own command line again, and that would be the app.


def _follow(arguments: list[str], folder: Path, job: Job) -> None:
    """Run `acestep train` to its end, passing on what it says, how far it is, and what the user asks for."""
    command = [sys.executable, "-m", "acestep", "train", *arguments]
    process = subprocess.Popen(
        command,
        env={**as_part_of_this_job(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    last: deque[str] = deque(maxlen=20)
    listener = threading.Thread(target=_pass_on, args=(process, job, last), name="acestep-train-output", daemon=True)
    listener.start()
    try:
        _watch(process, folder, job)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        listener.join()
    if process.returncode == 130 or (process.returncode and job.stop_requested):
        raise Stopped
    if process.returncode:
        words = next((line for line in reversed(last) if line.strip()), f"exit code {process.returncode}")
        raise UserError(words, detail="\n".join(last))


def _pass_on(process: subprocess.Popen[str], job: Job, last: deque[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        last.append(line.rstrip())
        job.say(line.rstrip())


def _watch(process: subprocess.Popen[str], folder: Path, job: Job) -> None:
    view, asked_to_stop = RunView(folder), False
    view.read()
    with job.stage("train", view.story.total_steps, "steps", already=view.story.step) as stage:
        ended = False
        while not ended:
            ended = _ends_within(process, LOOK_EVERY_S)
            if view.read() and view.story.steps:
                stage.total, newest = view.story.total_steps, view.story.steps[-1]
                stage.advance(view.story.step - stage.done, f"epoch {newest.epoch}, loss {newest.loss or math.nan:.4f}")
            if ended:
                continue
            if job.stop_requested and not (folder / "run.json").exists():
                process.terminate()  # nothing is there to be kept
            elif view.story.state == UNFINISHED:
                for name in ("save", "preview"):
                    if job.take_request(name):
                        ask(RunFolder.open(folder), name)
                if job.stop_requested and not asked_to_stop:
                    ask(RunFolder.open(folder), "stop")
                    asked_to_stop = True


def _ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
