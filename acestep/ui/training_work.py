"""Training in the background of the app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import TrainSettings
from acestep.ui.app import App


def resume_run(app: App, run_path: Path) -> Path:
    """Go on with a run in the background, with the model, tensors and settings it was begun with.

    Returns its folder.
    """
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.store import TensorStore
    from acestep.training.runs import RunFolder

    run = RunFolder.open(run_path)
    if run.is_running():
        raise UserError(f"The run {run.path.name} is running.", fix="Wait for it or stop it first.")
    record = run.record
    settings = TrainSettings.parse(record.get("settings", {}), str(run.path / "run.json"))
    model, tensors = (
        app.roots.resolve(record.get(part, {}).get("path", ""), f"The run's {name}")
        for part, name in (("model", "model"), ("tensors", "tensor folder"))
    )
    checkpoint, store = resolve_checkpoint(model), TensorStore.open(tensors)

    def go_on(job: Job) -> Any:
        from acestep.core.gpu import watched_gpu
        from acestep.training.train import train

        with watched_gpu(job):
            return train(checkpoint, store, run.path, settings, job, run.path)

    app.start_work("train", f"Training {run.path.name}", go_on, run.path)
    app.choose(run=str(run.path), model=str(model), tensors=str(tensors))
    return run.path
