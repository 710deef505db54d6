"""Checkpoints: adapter, optimizer and the loop's state, written whole or not at all, and read back strictly.

    checkpoints/step_000120/
        adapter_config.json, adapter_model.safetensors    (or lokr_weights.safetensors …): ready to use
        optimizer.safetensors                             moments and step counters
        training_weights.safetensors                      only where the adapter above is an average of them
        state.json                                        LoopState, the optimizer's settings, in fp16 the loss scale

There is no generator state to save: every draw of a run is a function of its seed and the step (see data.py).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from acestep.adapters import Adapter, TriggerTag, read_adapter_tensors, write_adapter_files
from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX, atomic_folder, existing_folder, read_json
from acestep.training.averaging import Averaging

STATE_VERSION = 1
TRAINING_WEIGHTS = "training_weights.safetensors"
_STEP_FOLDER = re.compile(r"step_(\d{6,})")


@dataclass
class LoopState:
    """Everything the loop changes. A new variable of the loop belongs here, or resuming would forget it."""

    step: int = 0
    bad_steps: int = 0
    skipped_steps: int = 0
    samples_seen: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    last_validation: float | None = None
    validated_at: int | None = None
    reference_loss: float | None = None
    judgements_without_gain: int = 0
    ended_early: bool = False
    epoch_loss_sum: float = 0.0
    epoch_samples: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    usual_loss: float | None = None
    usual_steps: int = 0
    exploded: bool = False
    rollbacks: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: Path) -> LoopState:
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(
                f"{source} was written by another version of this program.", fix="Resume from another checkpoint."
            ) from error


def save_checkpoint(
    folder: Path,
    adapter: Adapter,
    tag: TriggerTag,
    optimizer: torch.optim.Optimizer,
    averaging: Averaging,
    state: LoopState,
    scaler: torch.amp.GradScaler | None = None,
) -> Path:
    """Write one checkpoint under `folder` and return its path. `scaler` is what scales the loss, where one does."""
    from safetensors.torch import save_file

    path = checkpoint_path(folder, state.step)
    tensors, rest = _split_optimizer(optimizer.state_dict())
    with atomic_folder(path) as temporary:
        if averaging.keeps_two_weights:
            save_file(_copies(adapter), temporary / TRAINING_WEIGHTS)
        with averaging.in_use():
            write_adapter_files(adapter, temporary, tag)
        save_file(tensors, temporary / "optimizer.safetensors")
        shapes = [list(parameter.shape) for parameter in adapter.parameters()]
        facts = {"version": STATE_VERSION, "loop": state.to_dict(), "optimizer": rest, "shapes": shapes}
        if scaler is not None:
            facts["scaler"] = scaler.state_dict()
        (temporary / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies among those of a run."""
    return folder / f"step_{step:06d}"


def _copies(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in adapter.tensors().items()}


def load_checkpoint(
    path: Path,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    averaging: Averaging,
    scaler: torch.amp.GradScaler | None = None,
) -> LoopState:
    """Put adapter, optimizer and scaler back to where the checkpoint was written, and return the loop's state.

    Raises a UserError when a file is missing, damaged or belongs to another adapter or optimizer.
    """
    facts = read_json(path / "state.json", "the training state")
    if facts.get("version") != STATE_VERSION:
        raise UserError(
            f"{path} was written by another version of this program.", fix="Start a new run from its adapter."
        )
    adapter.load_tensors(read_adapter_tensors(path), f"The adapter in {path}")
    averaging.restore()
    if averaging.keeps_two_weights:
        adapter.load_tensors(_read(path / TRAINING_WEIGHTS), str(path / TRAINING_WEIGHTS))
    if facts.get("shapes") != [list(parameter.shape) for parameter in adapter.parameters()]:
        raise UserError(
            f"The optimizer state in {path} belongs to another adapter.",
            fix="Resume with the settings the run was started with.",
        )
    optimizer.load_state_dict(_join_optimizer(path, facts["optimizer"]))
    if scaler is not None and facts.get("scaler"):  # not there where another device trained without one
        scaler.load_state_dict(facts["scaler"])
    return LoopState.from_dict(facts["loop"], path / "state.json")


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and the rest as JSON. Some optimizers nest tensors one level deeper."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            inner = value if isinstance(value, dict) else {"": value}
            for part, item in inner.items():
                key = f"{index}/{name}/{part}" if part else f"{index}/{name}"
                if isinstance(item, torch.Tensor):
                    tensors[key] = item.detach().cpu().clone().contiguous()
                else:
                    numbers[key] = item
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _join_optimizer(path: Path, rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**_read(path / "optimizer.safetensors"), **rest["numbers"]}.items():
        index, name, *part = key.split("/")
        values = state.setdefault(int(index), {})
        if part:
            values.setdefault(name, {})[part[0]] = value
        else:
            values[name] = value
    return {"state": state, "param_groups": rest["groups"]}


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Not mapped into memory: an optimizer may go on with these very tensors, and Windows removes no mapped file.
        return {name: tensor.clone() for name, tensor in load(file.read_bytes()).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is missing or damaged.", fix="Resume from an older checkpoint.") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if _STEP_FOLDER.fullmatch(path.name)]
    return sorted((path for path in found if (path / "state.json").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint folder was written at."""
    match = _STEP_FOLDER.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else 0


def prune_checkpoints(folder: Path, keep_last: int, newest: int) -> None:
    """Remove the oldest checkpoints beyond `keep_last`; 0 keeps all.

    Those of later steps than `newest`, which was just written, go first: the run was resumed before them, and whoever
    resumes it again means the new way.
    """
    found = list_checkpoints(folder)
    given_up = [path for path in found if step_of(path) > newest]
    kept = found[: len(found) - len(given_up)]
    for path in [*given_up, *(kept[:-keep_last] if keep_last else [])]:
        # Renamed first: a crash while deleting leaves no half checkpoint under a good name.
        doomed = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def resume_point(run_folder: Path) -> Path:
    """The newest checkpoint of a run folder, or the folder itself when it is one. UserError when there is none."""
    run_folder = existing_folder(run_folder, "the run to resume")
    if (run_folder / "state.json").is_file():
        return run_folder
    checkpoints = list_checkpoints(run_folder / "checkpoints")
    if not checkpoints:
        raise UserError(
            f"{run_folder} holds no checkpoint to resume from.", fix="Delete it, or begin anew in another folder."
        )
    return checkpoints[-1]
