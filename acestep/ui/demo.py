"""The demo in the app: songs made on this computer and the small model beside them, opened and chosen."""

from __future__ import annotations

from acestep.core.background import Work
from acestep.core.jobs import Job
from acestep.settings import DatasetSettings, TrainSettings
from acestep.settings.presets import preset_values
from acestep.ui.app import App

PRESET = "demo"


def start_demo(app: App) -> Work:
    """Prepare the demo in the background."""
    return app.start_work("demo", "Preparing the demo", lambda job: prepare_demo(app, job), app.output / "demo")


def prepare_demo(app: App, job: Job) -> None:
    """Make what the demo needs unless it is there, then choose it: model, songs, tensor folder and preset.

    Songs of an earlier demo are kept with the labels they have by now.
    """
    from acestep.dataset.demo import CSV_NAME, TRIGGER_WORD, write_demo_songs
    from acestep.model.demo import DIT_FOLDER, write_demo_checkpoint

    folder = app.output / "demo"
    songs = folder / "songs"
    with job.stage("make the demo's songs and model", 2) as stage:
        if not (songs / CSV_NAME).exists():  # written last
            write_demo_songs(songs)
        stage.advance()
        job.check_stop()
        checkpoints = write_demo_checkpoint(folder / "checkpoints")
        stage.advance()
    app.open_songs(songs, job, DatasetSettings(name="demo", trigger_word=TRIGGER_WORD))
    app.fill(
        checkpoints=str(checkpoints),
        model=str(checkpoints / DIT_FOLDER),
        tensors=str(folder / "tensors"),
        preset=PRESET,
        train=TrainSettings.parse(preset_values(PRESET), f"the preset {PRESET}"),
    )
