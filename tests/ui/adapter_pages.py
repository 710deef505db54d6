"""What the tests of the Listen and Export tabs share: a project with runs, and adapters of random weights in them."""

from __future__ import annotations

from pathlib import Path

import torch

from acestep.adapters import TriggerTag, attach, save_adapter
from acestep.core.events import EventLog
from acestep.core.paths import write_json
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.identity import transformer_fingerprint
from acestep.model.loading import load_transformer
from acestep.settings import AdapterSettings, TrainSettings
from acestep.ui.app import App

LORA = AdapterSettings(rank=4, alpha=8, dropout=0)
LOKR = AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=2, lokr_alpha=6)
DORA = LORA.changed(dora=True)


def write_run(root: Path, name: str, checkpoint: Checkpoint, settings: AdapterSettings, tag: str = "zork") -> Path:
    """A run as training leaves it: final, best and two checkpoints, each with an adapter of random weights."""
    run = root / name
    transformer = load_transformer(checkpoint, torch.float32, "cpu")
    torch.manual_seed(len(name))
    adapter = attach(transformer, settings)
    for place in ("checkpoints/step_000010", "checkpoints/step_000020"):
        for parameter in adapter.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        save_adapter(adapter, run / place, TriggerTag(tag))
    for place in ("best", "final"):
        save_adapter(adapter, run / place, TriggerTag(tag))
        (run / place / "training.json").write_text('{"step": 20, "reason": "the last step"}')
    values = {**TrainSettings().model_dump(mode="json"), **settings.model_dump(mode="json")}
    base = {"name": checkpoint.name, "path": str(checkpoint.dit), "fingerprint": transformer_fingerprint(checkpoint)}
    write_json(
        run / "run.json",
        {"schema_version": 1, "settings": values, "model": base, "tensors": {"dataset": "blues", "songs": 7}},
    )
    log = EventLog(run / "events.jsonl")
    for step, loss in ((0, 1.5), (20, 1.25)):
        log.emit("validation", step=step, loss=loss)
    return run


def app_with_runs(project: Path, checkpoints: Path, *runs: tuple[str, AdapterSettings]) -> App:
    """An app with the demo model chosen and the runs in its output folder, the first of them open."""
    project.mkdir()
    app = App(project, (checkpoints,))
    checkpoint = resolve_checkpoint(str(checkpoints / "acestep-v15-demo"))
    paths = [write_run(app.output, name, checkpoint, settings) for name, settings in runs]
    app.choose(model=str(checkpoint.dit), run=str(paths[0]) if paths else "")
    return app


def finish(app: App) -> None:
    """Wait for the work under way, and fail where it failed."""
    assert app.background.wait(120)
    work = app.background.current
    assert work is not None and work.state == "finished", work and (work.problem, work.trace)
