"""Tensor folders made by hand, so that training is tested without encoding audio."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hand_made import EIGHT_SONGS, MakeStore, Shape

from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.preprocess.store import (
    StoredSong,
    StoreInfo,
    TensorStore,
    condition_file,
    latents_file,
    variant_names,
    write_index,
    write_tensors,
)


@pytest.fixture(scope="session")
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint(str(demo_checkpoint / "acestep-v15-demo"))


def key_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@pytest.fixture
def make_store(tmp_path: Path, checkpoint: Checkpoint) -> MakeStore:
    """Writes a tensor folder of songs with the given shapes. All share a style that an adapter can learn."""
    return store_maker(tmp_path, checkpoint)


@pytest.fixture(scope="session")
def eight_songs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> TensorStore:
    """A tensor folder for all tests that do not change it."""
    return store_maker(tmp_path_factory.mktemp("eight songs"), checkpoint)()


def store_maker(base: Path, checkpoint: Checkpoint) -> MakeStore:
    """The function behind `make_store`; its folders lie in `base`."""

    def make(shapes: Sequence[Shape] = EIGHT_SONGS, name: str = "tensors", **changes: object) -> TensorStore:
        from acestep.model.identity import condition_fingerprint, vae_fingerprint

        folder = base / name
        width, condition_width = (
            checkpoint.config.latent_width,
            checkpoint.config.condition_encoder_kwargs()["hidden_size"],
        )
        style = torch.randn(width, generator=torch.Generator().manual_seed(0))
        facts = {
            "dataset_name": "hand made",
            "trigger_word": "handstyle",
            "tag_position": "prepend",
            "genre_ratio": 0,
            "checkpoint_name": checkpoint.name,
            "vae_fingerprint": vae_fingerprint(checkpoint),
            "condition_fingerprint": condition_fingerprint(checkpoint),
            "latent_width": width,
            "precision": "fp32",
            "normalize": "none",
            "max_duration_s": 240.0,
            "latents": "sample",
            "seed": 42,
        }
        songs = []
        for number, shape in enumerate(shapes):
            generator = torch.Generator().manual_seed(100 + number)
            latents = style + 0.3 * torch.randn(shape.frames, width, generator=generator)
            texts = [torch.randn(shape.text, condition_width, generator=generator) for _ in range(2)]
            head = torch.randn(shape.head, condition_width, generator=generator)
            latents_key, condition_key = key_of("latents", name, number), key_of("condition", name, number)
            write_tensors(latents_file(folder, latents_key), {"latents": latents}, {})
            tensors = {"head": head, "text.0": texts[0], "text.1": texts[1]}
            write_tensors(condition_file(folder, condition_key), tensors, {})
            songs.append(
                StoredSong(
                    id=key_of("song", number)[:16],
                    title=f"song {number}",
                    frames=shape.frames,
                    duration_s=shape.frames / 25,
                    repeat=shape.repeat,
                    override=None,
                    has_genre=False,
                    custom_tag="",
                    latents_key=latents_key,
                    condition_key=condition_key,
                    head_tokens=shape.head,
                    text_tokens=[shape.text, shape.text],
                    width=condition_width,
                    variants={name: int(name.endswith("none")) for name in variant_names()},
                    prompts=["with tag", "without"],
                    lyric_prompt="",
                    regularization=shape.regularization,
                )
            )
        write_index(folder, StoreInfo(**{**facts, **changes}), songs)
        return TensorStore.open(folder)

    return make
