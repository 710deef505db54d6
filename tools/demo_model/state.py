"""Training state on disk: safetensors and JSON, written whole or not at all, so that every stage can be continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.core.paths import write_json


def save_state(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: dict) -> None:
    """Weights, the optimizers' moments and `facts` (the step and what else the stage wants to know again)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"module.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).contiguous()
    file = folder / f"state-{facts['step']}.safetensors"
    save_file(tensors, file)
    write_json(folder / "state.json", {**facts, "file": file.name})
    for old in folder.glob("state-*.safetensors"):
        if old != file:
            old.unlink()


def machine_name(device: str) -> str:
    """What a stage is trained on, in words."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"


def load_facts(folder: Path) -> dict | None:
    """The facts of what `save_state` wrote; None where nothing was saved yet."""
    file = folder / "state.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def load_state(folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> dict | None:
    """Restores what `save_state` wrote and returns its facts; None where nothing was saved yet."""
    facts = load_facts(folder)
    if facts is None:
        return None
    tensors = load_file(folder / facts["file"])
    weights = {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    module.load_state_dict(weights)
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, kind = name.split(".")
                moments.setdefault(int(index), {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return facts


def rate_at(step: int, steps: int, peak: float, warmup: int = 200, decay_share: float = 0.35) -> float:
    """Learning rate: linear warm-up, constant, then linear decay to 2 % over the last `decay_share` of the steps."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (decay_share * steps))
    return peak * rise * max(0.02, fall)
