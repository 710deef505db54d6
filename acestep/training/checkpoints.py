"""Checkpoints: adapter, optimizer and the loop's state, written whole or not at all, and read back strictly.

    checkpoints/step_000120/
        adapter_config.json, adapter_model.safetensors    (or lokr_weights.safetensors …): ready to use
        optimizer.safetensors                             moments and step counters
        state.json                                        LoopState and the optimizer's settings

There is no generator state to save: every draw of a run is a function of its seed and the step (see data.py).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from acestep.adapters import Adapter, TriggerTag, write_adapter_files
from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX, atomic_folder, existing_folder, read_json

STATE_VERSION = 1
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
    folder: Path, adapter: Adapter, tag: TriggerTag, optimizer: torch.optim.Optimizer, state: LoopState
) -> Path:
    """Write one checkpoint under `folder` and return its path."""
    from safetensors.torch import save_file

    path = folder / f"step_{state.step:06d}"
    tensors, rest = _split_optimizer(optimizer.state_dict())
    with atomic_folder(path) as temporary:
        write_adapter_files(adapter, temporary, tag)
        save_file(tensors, temporary / "optimizer.safetensors")
        facts = {"version": STATE_VERSION, "loop": state.to_dict(), "optimizer": rest}
        (temporary / "state.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return path


def load_checkpoint(path: Path, adapter: Adapter, optimizer: torch.optim.Optimizer) -> LoopState:
    """Put adapter and optimizer back to where the checkpoint was written, and return the loop's state.

    Raises a UserError when a file is missing, damaged or belongs to another adapter or optimizer.
    """
    from acestep.adapters import read_adapter_tensors

    facts = read_json(path / "state.json", "the training state")
    if facts.get("version") != STATE_VERSION:
        raise UserError(
            f"{path} was written by another version of this program.", fix="Start a new run from its adapter."
        )
    adapter.load_tensors(read_adapter_tensors(path))
    optimizer.load_state_dict(_join_optimizer(path, facts["optimizer"], optimizer))
    return LoopState.from_dict(facts["loop"], path / "state.json")


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _join_optimizer(path: Path, rest: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = path / "optimizer.safetensors"
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is missing or damaged.", fix="Resume from an older checkpoint.") from error
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    for index, values in rest["numbers"].items():
        state.setdefault(int(index), {}).update(values)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wrong = [
        index
        for index, values in state.items()
        if index >= len(parameters)
        or any(
            isinstance(value, torch.Tensor) and value.dim() and value.shape != parameters[index].shape
            for value in values.values()
        )
    ]
    if wrong or len(rest["groups"]) != len(optimizer.param_groups):
        raise UserError(
            f"{file} belongs to another adapter ({len(wrong)} of {len(parameters)} moments do not fit).",
            fix="Resume with the settings the run was started with.",
        )
    return {"state": state, "param_groups": rest["groups"]}


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints under `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if _STEP_FOLDER.fullmatch(path.name)]
    return sorted((path for path in found if (path / "state.json").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint folder was written at."""
    match = _STEP_FOLDER.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else 0


def prune_checkpoints(folder: Path, keep_last: int) -> None:
    """Remove the oldest checkpoints beyond `keep_last`; 0 keeps all."""
    if not keep_last:
        return
    for path in list_checkpoints(folder)[:-keep_last]:
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
        raise UserError(f"{run_folder} holds no checkpoint to resume from.", fix="Start the run again.")
    return checkpoints[-1]
