"""Shapes of songs made by hand, and settings of a run of a second or two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings

MakeStore = Callable[..., TensorStore]


@dataclass(frozen=True)
class Shape:
    """Frames of a song and tokens of its lyrics and caption."""

    frames: int
    head: int = 6
    text: int = 20
    repeat: int = 1
    regularization: bool = False


EIGHT_SONGS = tuple(Shape(frames=150 + 10 * (i % 3), head=4 + i % 3, text=18 + i % 4) for i in range(8))


def short_run(**changes: object) -> TrainSettings:
    """Settings of a run of a second or two."""
    values: dict[str, object] = {
        "rank": 4,
        "alpha": 8,
        "dropout": 0.1,
        "learning_rate": 3e-3,
        "max_steps": 6,
        "warmup_steps": 2,
        "gradient_accumulation": 1,
        "batch_size": 2,
        "max_latent_length": 50,
        "validation": "songs",
        "validation_share": 0.25,
        "validation_timesteps": 3,
        "save_every_epochs": 0,
        "tensorboard": False,
        "lokr_dim": 4,
        "lokr_alpha": 8,
        "lokr_factor": 4,
    }
    return TrainSettings.parse({**values, **changes}, "test")
