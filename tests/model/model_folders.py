"""Copies of the demo model to change: with other names, sharded, in the diffusers layout, and with faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep.model import loading
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint

DIT = "acestep-v15-demo"


def copy_of(demo_checkpoint: Path, folder: Path) -> Path:
    """A copy of the demo's checkpoints folder that a test may change."""
    return Path(shutil.copytree(demo_checkpoint, folder))


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def shard(dit: Path, count: int) -> None:
    """Spread model.safetensors over `count` files with an index, as large models are published."""
    single = dit / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    files = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, dit / file)
        files.update(dict.fromkeys(part, file))
    (dit / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def in_diffusers_layout(demo_checkpoint: Path, folder: Path) -> Path:
    """The demo model as diffusers' own `save_pretrained` writes a pipeline."""
    checkpoint = resolve_checkpoint(demo_checkpoint)
    place = (torch.bfloat16, "cpu")
    encoder = loading.load_text_encoder(checkpoint, *place)
    parts = {
        "transformer": loading.load_transformer(checkpoint, *place),
        "condition_encoder": loading.load_condition_encoder(checkpoint, *place),
        "audio_tokenizer": loading.load_audio_tokenizer(checkpoint, *place),
        "audio_token_detokenizer": loading.load_audio_token_detokenizer(checkpoint, *place),
        "text_encoder": encoder.model,
        "tokenizer": encoder.tokenizer,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    shutil.copytree(checkpoint.vae, folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "AceStepPipeline"}))
    return folder


def only_dit(dit: Path) -> Checkpoint:
    """The checkpoint in a DiT folder whose VAE and text encoder do not matter."""
    return resolve_checkpoint(dit, needs=())
