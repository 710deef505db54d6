"""Fingerprints: equal for equal content wherever it lies, different for every change that matters."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import DIT, change_json, change_tensors, copy_of, in_diffusers_layout, shard

from acestep.core.errors import UserError
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.identity import condition_fingerprint, transformer_fingerprint, vae_fingerprint


def fingerprints(models: Path) -> dict[str, str]:
    checkpoint = resolve_checkpoint(models)
    return {
        "transformer": transformer_fingerprint(checkpoint),
        "condition": condition_fingerprint(checkpoint),
        "vae": vae_fingerprint(checkpoint),
    }


@pytest.fixture(scope="module")
def expected(demo_checkpoint: Path) -> dict[str, str]:
    return fingerprints(demo_checkpoint)


@pytest.fixture
def models(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return copy_of(demo_checkpoint, tmp_path / "copy")


def test_they_are_hashes_and_repeat(demo_checkpoint: Path, expected: dict[str, str]) -> None:
    assert fingerprints(demo_checkpoint) == expected
    assert len(set(expected.values())) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in expected.values())


def test_a_copy_under_another_name_is_the_same(models: Path, expected: dict[str, str]) -> None:
    (models / DIT).rename(models / "my model")
    for file in models.rglob("*"):
        if file.is_file():
            file.touch()
    assert fingerprints(models) == expected


def test_shards_and_notes_do_not_matter(models: Path, expected: dict[str, str]) -> None:
    shard(models / DIT, 3)
    change_json(models / "vae/config.json", _diffusers_version="9.9", _name_or_path="elsewhere")
    change_json(models / "Qwen3-Embedding-0.6B/config.json", transformers_version="9.9", dtype="float32")
    (models / DIT / "modeling.py").write_text("print()")
    assert fingerprints(models) == expected


def test_the_diffusers_layout_has_the_same_transformer_and_vae(
    demo_checkpoint: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    found = fingerprints(in_diffusers_layout(demo_checkpoint, tmp_path / "pipeline"))
    assert {part for part in expected if found[part] == expected[part]} == {"transformer", "vae"}


def nudge(file: str, name: str) -> Callable[[Path], None]:
    def change(models: Path) -> None:
        def one_value(tensors: dict[str, torch.Tensor]) -> None:
            tensors[name].view(-1)[-1] += 1.0

        change_tensors(models / file, one_value)

    return change


def other_silence(models: Path) -> None:
    file = models / DIT / "silence_latent.pt"
    torch.save(torch.load(file, weights_only=True) + 1, file)


WEIGHTS = f"{DIT}/model.safetensors"
TEXT = "Qwen3-Embedding-0.6B"
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight of the DiT": (nudge(WEIGHTS, "decoder.layers.1.mlp.up_proj.weight"), "transformer"),
    "the null condition": (nudge(WEIGHTS, "null_condition_emb"), "transformer"),
    "a weight of the lyric encoder": (
        nudge(WEIGHTS, "encoder.lyric_encoder.layers.0.mlp.up_proj.weight"),
        "condition",
    ),
    "a weight of the 5 Hz tokenizer": (nudge(WEIGHTS, "tokenizer.audio_acoustic_proj.weight"), ""),
    "a weight of the text encoder": (nudge(f"{TEXT}/model.safetensors", "layers.0.mlp.up_proj.weight"), "condition"),
    "a weight of the VAE": (
        nudge("vae/diffusion_pytorch_model.safetensors", "decoder.conv1.weight_g"),
        "vae",
    ),
    "the silence latent": (other_silence, "condition"),
    "the timestep draw": (lambda models: change_json(models / DIT / "config.json", timestep_mu=0.0), "transformer"),
    "the label": (lambda models: change_json(models / DIT / "config.json", model_version="mine"), ""),
    "the reference's length": (
        lambda models: change_json(models / DIT / "config.json", timbre_fix_frame=75),
        "condition",
    ),
    "the tokenizer": (
        lambda models: change_json(models / TEXT / "tokenizer_config.json", padding_side="left"),
        "condition",
    ),
    "the sampling rate": (lambda models: change_json(models / "vae/config.json", sampling_rate=44100), "vae"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_shows_where_it_belongs_and_nowhere_else(models: Path, expected: dict[str, str], what: str) -> None:
    change, part = CHANGES[what]
    change(models)
    found = fingerprints(models)
    assert {name for name in expected if found[name] != expected[name]} == ({part} if part else set())


def test_a_damaged_file_is_named(models: Path) -> None:
    (models / WEIGHTS).write_bytes(b"short")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        transformer_fingerprint(resolve_checkpoint(models, needs=()))


def test_neither_finding_nor_fingerprinting_needs_torch(demo_checkpoint: Path) -> None:
    script = (
        "import sys; from acestep.model.checkpoints import resolve_checkpoint as r; "
        "from acestep.model.identity import *; "
        f"c = r({str(demo_checkpoint)!r}); transformer_fingerprint(c); condition_fingerprint(c); vae_fingerprint(c); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
