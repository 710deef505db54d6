"""Settings of training. Each group is a class of its own; TrainSettings is all of them in one flat list."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from acestep.core.device import DeviceName, PrecisionName
from acestep.settings.adapter import AdapterSettings
from acestep.settings.base import Settings, knob
from acestep.settings.dataset import TagPosition
from acestep.settings.formula import Formula
from acestep.settings.preview import PreviewSettings

BaseWeights = Literal["full", "int8", "nf4"]


class WindowSettings(Settings):
    """Which part of a song one training sample is, and what its prompt says."""

    window: Literal["random", "tiled", "whole"] = knob(
        "random",
        "Part of a song in an epoch: one window from anywhere, all windows of a fixed tiling, or the whole song.",
        group="data",
    )
    max_latent_length: int = knob(
        1500,
        "Longest window in latent frames, 25 a second (1500 = 60 s); 0 trains on whole songs.",
        group="data",
        level="basic",
        ge=0,
        le=15000,
    )
    tag_position: TagPosition | None = knob(
        None, "Where the trigger word stands; unset takes the dataset's choice.", group="data"
    )
    genre_ratio: int | None = knob(
        None, "Percentage of songs prompted by genre; unset takes the dataset's choice.", group="data", ge=0, le=100
    )


class ObjectiveSettings(Settings):
    """The flow-matching objective."""

    timestep_mu: float | None = knob(
        None,
        "Mean of the logit-normal timestep draw; unset takes the checkpoint's.",
        group="objective",
        level="expert",
        ge=-5,
        le=5,
    )
    timestep_sigma: float | None = knob(
        None,
        "Spread of the logit-normal timestep draw; unset takes the checkpoint's.",
        group="objective",
        level="expert",
        gt=0,
        le=5,
    )
    timestep_draw: Literal["model", "single", "turbo"] = knob(
        "model",
        "Timestep draw: the model's own (the larger of two), a single logit-normal, or the eight turbo steps.",
        group="objective",
        level="expert",
    )
    condition_dropout: float = knob(
        0.15, "Share of samples trained without prompt, which guidance needs.", group="objective", ge=0, le=1
    )
    stratified_timesteps: bool = knob(
        False,
        "Spread the timesteps of one optimizer step evenly over their distribution: less noise in the gradient.",
        group="objective",
    )
    regularization_weight: float = knob(
        1.0,
        "Factor on the loss of songs marked as regularization; 0 leaves those songs out.",
        group="objective",
        ge=0,
        le=10,
    )
    loss_weighting: Literal["none", "min_snr"] = knob(
        "none", "Weight of a sample by its timestep; min_snr takes weight from nearly clean samples.", group="objective"
    )
    snr_gamma: float = knob(
        5.0, "Signal-to-noise ratio above which min_snr lowers the weight.", group="objective", gt=0, le=100
    )
    ema_decay: float = knob(
        0.0,
        "Decay of a running average of adapter weights, which is then judged, kept and used; 0 is off.",
        group="objective",
        ge=0,
        lt=1,
    )


class OptimizerSettings(Settings):
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy", "schedule_free"] = knob(
        "adamw",
        "Optimizer: adamw8bit and adafactor save memory, prodigy finds its rate, schedule_free needs no schedule.",
        group="optimizer",
        level="basic",
    )
    learning_rate: float = knob(1e-4, "Peak learning rate.", group="optimizer", level="basic", gt=0, le=1e4)
    weight_decay: float = knob(0.01, "Weight decay.", group="optimizer", ge=0, le=1)
    max_grad_norm: float = knob(
        1.0, "Longest gradient; longer ones are scaled down. 0 switches clipping off.", group="optimizer", ge=0
    )
    nan_limit: int = knob(
        10,
        "So many steps in a row whose loss or gradient is not a number undo the last ones; where that helps nothing, "
        "the run ends.",
        group="optimizer",
        level="expert",
        ge=1,
        le=1000,
    )
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant", "constant_with_warmup", "formula"] = knob(
        "cosine", "Course of the learning rate after warm-up.", group="optimizer", level="basic"
    )
    schedule_formula: str = knob(
        "",
        "Rate after warm-up as arithmetic over progress, step and base_lr, for the schedule formula.",
        group="optimizer",
    )
    warmup_steps: int = knob(
        100,
        "Steps of linear warm-up from 10 % of the rate; never more than a tenth of the run.",
        group="optimizer",
        ge=0,
    )
    batch_size: int = knob(1, "Windows in one forward pass.", group="optimizer", level="basic", ge=1, le=256)
    gradient_accumulation: int = knob(
        4,
        "Forward passes in one optimizer step: effective batch is batch size times this.",
        group="optimizer",
        level="basic",
        ge=1,
        le=1024,
    )

    @model_validator(mode="after")
    def _check_formula(self) -> OptimizerSettings:
        if self.schedule == "formula":
            try:
                Formula(self.schedule_formula)
            except ValueError as error:
                raise ValueError(f'setting "schedule_formula": {error}') from error
        return self


class ValidationSettings(Settings):
    """How progress is judged."""

    validation: Literal["auto", "songs", "windows", "none"] = knob(
        "auto",
        "What is held out: whole songs, the end of each song, or nothing; auto takes songs from ten songs up.",
        group="validation",
        level="basic",
    )
    validation_share: float = knob(
        0.1, "Share of songs, or of each song, that is held out.", group="validation", gt=0, le=0.5
    )
    validate_every: int = knob(
        0, "Optimizer steps between validations; 0 validates once an epoch.", group="validation", ge=0
    )
    validation_timesteps: int = knob(
        8, "Fixed timesteps each held-out window is judged at.", group="validation", level="expert", ge=1, le=64
    )
    early_stop_patience: int = knob(
        0, "End the run after so many judgements in a row without improvement; 0 is off.", group="validation", ge=0
    )
    smallest_improvement: float = knob(
        0.001,
        "Share by which the loss must fall to count as improvement.",
        group="validation",
        level="expert",
        ge=0,
        lt=1,
    )
    best_after_share: float = knob(
        0.2,
        "Without validation: share of the run after which the training loss, averaged over five epochs, may choose.",
        group="validation",
        level="expert",
        ge=0,
        lt=1,
    )


class RunSettings(Settings):
    """How long a run is, what it keeps and how it logs."""

    epochs: int = knob(100, "Passes over the songs.", group="run", level="basic", ge=1, le=100_000)
    max_steps: int = knob(
        0, "Length in optimizer steps instead of epochs; 0 counts epochs.", group="run", level="basic", ge=0
    )
    seed: int = knob(42, "Seed of every random draw of the run.", group="run", ge=0)
    save_every_epochs: int = knob(
        10, "Epochs between checkpoints; 0 saves at the end only.", group="run", level="basic", ge=0
    )
    save_every_steps: int = knob(
        0, "Optimizer steps between checkpoints, beside the epochs; 0 is off.", group="run", ge=0
    )
    keep_last: int = knob(3, "Checkpoints kept besides the best; 0 keeps all.", group="run", ge=0)
    log_every: int = knob(10, "Optimizer steps between lines in the terminal.", group="run", level="expert", ge=1)
    tensorboard: bool = knob(True, "Write TensorBoard files into the run folder.", group="run", level="expert")


class HardwareSettings(Settings):
    """Where the training runs."""

    device: DeviceName = knob("auto", "Device to train on.", group="hardware")
    precision: PrecisionName = knob(
        "auto", "Number format of the frozen base; adapter and optimizer are always fp32.", group="hardware"
    )
    devices: int = knob(
        1,
        "Devices to train on, one process each; they share the forward passes of a step.",
        group="hardware",
        ge=1,
        le=64,
    )
    num_nodes: int = knob(1, "Machines of a run that torchrun or `fabric run` starts.", group="hardware", ge=1, le=256)
    compile: Literal["auto", "on", "off"] = knob(
        "auto", "Compile the model's blocks: faster steps after a minute; auto does so on CUDA.", group="hardware"
    )
    gradient_checkpointing: float = knob(
        0.0,
        "Share of the layers whose activations are recomputed in the backward pass: at 1 far less memory, a third more "
        "time, the same result.",
        group="hardware",
        level="basic",
        ge=0,
        le=1,
    )
    base_weights: BaseWeights = knob(
        "full",
        "Storage of the frozen base: as precision says, or in 8 or 4 bits (half and a quarter of bf16, a little less "
        "exact).",
        group="hardware",
    )
    on_out_of_memory: Literal["adapt", "stop"] = knob(
        "adapt",
        "When a step does not fit into memory: go on with smaller passes, then shorter windows, or stop.",
        group="hardware",
    )


# pydantic lists the fields of the last base first
class TrainSettings(
    PreviewSettings,
    HardwareSettings,
    RunSettings,
    ValidationSettings,
    OptimizerSettings,
    ObjectiveSettings,
    WindowSettings,
    AdapterSettings,
):
    """Every setting of a training run, in one flat list of names."""
