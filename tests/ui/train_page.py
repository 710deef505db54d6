"""What the tests of the Train tab share: settings away from their defaults, and a page whose app has tensors."""

from __future__ import annotations

import shutil
import typing
from pathlib import Path
from typing import Any

from acestep.core.jobs import Job
from acestep.settings import TrainSettings, fields_of
from acestep.settings.base import Knob
from acestep.ui.app import App
from acestep.ui.controls import to_shown
from acestep.ui.page import Page
from acestep.ui.train_form import FAMILIES
from lora_training_ui import build

QUICK: dict[str, Any] = {"max_steps": 3, "max_latent_length": 50, "tensorboard": False, "validation_timesteps": 1}

BY_HAND: dict[str, Any] = {
    "self_modules": ("q", "v"),
    "cross_modules": ("k",),
    "layers": "0",
    "rank_pattern": {"layers.0.cross_attn.k_proj": 2},
    "alpha_pattern": {"layers.0.cross_attn.k_proj": 3.0},
    "lokr_factor": 4,
    "oft_block_size": 4,
    "max_latent_length": 60,
    "optimizer": "adafactor",
    "schedule": "formula",
    "schedule_formula": "base_lr * (1 - progress)",
    "max_steps": 1,
    "validation": "windows",
    "device": "cpu",
    "precision": "fp32",
    "compile": "off",
    "preview_captions": ["a calm piano", "loud drums"],
    "preview_lyrics": "[verse]\nla la",
    "preview_language": "en",
    "preview_keyscale": "A minor",
    "preview_every_steps": 1,
    "preview_duration_s": 1.0,
    "preview_seeds": [3, 4],
    "preview_strengths": [0.5, 1.25],
    "preview_steps": 1,
}
"""Settings where only certain other values can be trained with on the demo model."""

ONE_PROCESS_ONLY = {"devices", "num_nodes"}


def away(knob: Knob) -> Any:
    """A value that is not the default."""
    if knob.name in BY_HAND:
        return BY_HAND[knob.name]
    kind = knob.annotation
    if type(None) in typing.get_args(kind):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in reversed(typing.get_args(kind)) if choice != knob.default)
    if kind is bool:
        return not knob.default
    low = knob.minimum if knob.minimum is not None else 0
    high = knob.maximum if knob.maximum is not None else low + 10
    if kind is int:
        near = int(low if knob.default is None else knob.default)
        return near + 1 if near + 1 <= high else near - 1
    assert kind is float, f"give {knob.name} a value by hand"
    middle = low + (min(high, low + 1) - low) / 4
    return middle if middle != knob.default else middle / 2


def settings_away(adapter: str) -> TrainSettings:
    """Every setting that a run with this kind of adapter has, away from its default; those of other kinds not."""
    values = {
        knob.name: away(knob)
        for knob in fields_of(TrainSettings)
        if knob.name not in ONE_PROCESS_ONLY and (knob.group not in FAMILIES or knob.group == adapter)
    }
    return TrainSettings(**{**values, "adapter": adapter})


def shown(settings: TrainSettings) -> dict[str, Any]:
    """The settings as the page's controls hold them."""
    return {knob.name: to_shown(knob, getattr(settings, knob.name)) for knob in fields_of(TrainSettings)}


def write_tensors(checkpoints: Path, songs: Path, out: Path) -> None:
    """Encode the demo's songs."""
    from acestep.dataset.store import load_dataset
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.run import preprocess
    from acestep.settings import PreprocessSettings

    checkpoint = resolve_checkpoint(str(checkpoints / "acestep-v15-demo"))
    preprocess(load_dataset(songs, job=Job()), checkpoint, out, PreprocessSettings(), Job())


def app_with_tensors(project: Path, checkpoints: Path, tensors: Path) -> App:
    """An app that may open the demo model and has a copy of the tensors."""
    project.mkdir()
    copy = project / "datasets" / "demo_tensors"
    shutil.copytree(tensors, copy)
    app = App(project, (checkpoints,))
    app.choose(model=str(checkpoints / "acestep-v15-demo"), tensors=str(copy))
    return app


def page_of(app: App) -> Page:
    return build(app)[1]


def start(page: Page, settings: TrainSettings, name: str = "") -> Path:
    """Start a run by the page's own handler; returns its folder."""
    tensors = page.app.workspace.tensors
    page.handler("train.start")(drawn=0, tensors=tensors, run_name=name, **shown(settings))
    return Path(page.app.workspace.run)


def finish(page: Page) -> None:
    """Wait for the work under way, and fail where it failed."""
    assert page.app.background.wait(120)
    work = page.app.background.current
    assert work is not None and work.state != "failed", work and (work.problem, work.trace)
