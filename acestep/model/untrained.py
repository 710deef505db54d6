"""A tiny ACE-Step checkpoint in the original layout, made from nothing: for tests and benchmarks.

It plays noise, but it is built in a second and everything with it is quick; `acestep.model.demo` has a small model
that plays. Every part of a real checkpoint is there, under the published names, so all code that handles this one
handles the real model. The parts are narrow (8 latent channels instead of 64), and their weights are random but put
in scale: latents have about unit power, and the DiT is a sensible starting point that a short training improves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.core.errors import UserError
from acestep.core.paths import atomic_folder, read_json, write_json
from acestep.model import untrained_dit, untrained_text, untrained_vae
from acestep.model.config import DitConfig
from acestep.model.demo import DIT_FOLDER, LANGUAGE_MODEL_FOLDER
from acestep.model.names import Part, to_original
from acestep.model.variants import TEXT_ENCODER_FOLDER, VAE_FOLDER

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck
    from torch import Tensor, nn

MARKER = "untrained.json"
VERSION = 1
"""Raise it when the built files change; older folders are then built again."""

SILENCE_FRAMES = 1500
"""60 s; the published silence latent has ten times as many. Longer pieces repeat it."""

_LEVELS = [4, 4, 4]
_WIDTH = 64
_ENCODER_WIDTH = 48


def build_untrained_checkpoint(folder: Path) -> Path:
    """Build the checkpoints in `folder` (new, empty or built earlier) and return the folder.

    The result does not depend on the machine's random state. A model that is already there is kept.
    Raises UserError when `folder` holds anything else, so that real checkpoints are never replaced.
    """
    folder = Path(folder)
    if (folder / MARKER).is_file():
        if read_json(folder / MARKER, "the untrained model's marker file").get("version") == VERSION:
            return folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not empty and holds no untrained model.", fix="Choose a new folder for the untrained model."
        )
    with atomic_folder(folder) as temporary:
        with _no_progress_bars():
            _write_parts(temporary)
        for file in temporary.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes private files
        write_json(temporary / MARKER, {"version": VERSION, "what": "a tiny untrained model for tests and benchmarks"})
    return folder


def untrained_config() -> dict[str, Any]:
    """The DiT's config.json: published field names, tiny values, sizes split between DiT and encoder as in XL."""
    return {
        "model_type": "acestep",
        "architectures": ["AceStepConditionGenerationModel"],
        "dtype": "bfloat16",
        "is_turbo": True,
        "model_version": "turbo",
        "hidden_size": _WIDTH,
        "intermediate_size": 160,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "encoder_hidden_size": _ENCODER_WIDTH,
        "encoder_intermediate_size": 96,
        "encoder_num_attention_heads": 4,
        "encoder_num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "use_sliding_window": True,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "in_channels": 3 * untrained_vae.LATENT_WIDTH,
        "audio_acoustic_hidden_dim": untrained_vae.LATENT_WIDTH,
        "timbre_hidden_dim": untrained_vae.LATENT_WIDTH,
        "timbre_fix_frame": 750,
        "patch_size": 2,
        "pool_window_size": 5,
        "text_hidden_dim": untrained_text.TEXT_WIDTH,
        "num_lyric_encoder_hidden_layers": 2,
        "num_timbre_encoder_hidden_layers": 2,
        "num_attention_pooler_hidden_layers": 2,
        "num_audio_decoder_hidden_layers": 4,
        "fsq_dim": _ENCODER_WIDTH,
        "fsq_input_levels": _LEVELS,
        "fsq_input_num_quantizers": 1,
        "vocab_size": 64,
        "timestep_mu": -0.4,
        "timestep_sigma": 1.0,
        "data_proportion": 0.5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
    }


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws a bar even for a file of 200 kB."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_parts(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    vae = untrained_vae.build_vae(seed=1)
    vae.save_pretrained(folder / VAE_FOLDER)
    untrained_text.write_text_encoder(folder / TEXT_ENCODER_FOLDER, seed=2)
    untrained_text.write_language_model(folder / LANGUAGE_MODEL_FOLDER, codes=math.prod(_LEVELS), seed=3)

    silence = _silence_latent(vae)  # (1, N, C)
    dit = folder / DIT_FOLDER
    dit.mkdir()
    write_json(dit / "config.json", untrained_config())
    torch.save(silence.transpose(1, 2).contiguous(), dit / "silence_latent.pt")  # published channels first
    tensors = _original_tensors(DitConfig.read(dit), silence)
    save_file(tensors, dit / "model.safetensors", metadata={"format": "pt"})


def _silence_latent(vae: AutoencoderOobleck) -> Tensor:
    """The VAE's mean for SILENCE_FRAMES frames of silence.  (1, N, C).

    A convolution over silence gives the same frame everywhere but at its ends, so a short piece is encoded and its
    middle frame repeated.
    """
    import torch

    with torch.inference_mode():
        short = vae.encode(torch.zeros(1, 2, 50 * vae.hop_length)).latent_dist.mean.transpose(1, 2)
    middle = short[:, 25:26].expand(-1, SILENCE_FRAMES - short.shape[1], -1)
    whole = torch.cat([short[:, :25], middle, short[:, 25:]], dim=1)
    return (whole * 1024).round() / 1024  # the last bits depend on the number of threads


def _original_tensors(config: DitConfig, silence: Tensor) -> dict[str, Tensor]:
    """All weights of the DiT folder in bf16 under their original names."""
    import torch

    tokenizer, detokenizer = untrained_dit.build_audio_tokenizer(
        config.tokenizer_kwargs(), config.detokenizer_kwargs(), seed=6
    )
    parts: dict[Part, nn.Module] = {
        "transformer": untrained_dit.build_transformer(config.transformer_kwargs(), seed=4),
        "condition_encoder": untrained_dit.build_condition_encoder(config.condition_encoder_kwargs(), silence, seed=5),
        "audio_tokenizer": tokenizer,
        "audio_token_detokenizer": detokenizer,
    }
    return {
        to_original(part, key): value.detach().to(torch.bfloat16).contiguous()
        for part, module in parts.items()
        for key, value in module.named_parameters()
    }
