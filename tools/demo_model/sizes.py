"""Sizes of the small model's DiT and text parts, under the field names of the published config.json."""

from __future__ import annotations

from typing import Any

from demo_model.vae import LATENT_WIDTH

TEXT_WIDTH = 128
CONDITION_WIDTH = 128
LEVELS = [8, 8, 8, 5]
"""The 5 Hz tokenizer's levels: 2560 codes."""

TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


ROPE_THETA = 100
"""With the published 1 000 000 nearly all angles would stand still over a piece of 125 tokens. With this base several
turn about once in a beat, so that attention has something to tell one tempo from another by."""


def dit_config() -> dict[str, Any]:
    """config.json of the base variant."""
    return {
        "model_type": "acestep",
        "architectures": ["AceStepConditionGenerationModel"],
        "dtype": "bfloat16",
        "is_turbo": False,
        "model_version": "base",
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "encoder_hidden_size": CONDITION_WIDTH,
        "encoder_intermediate_size": 192,
        "encoder_num_attention_heads": 4,
        "encoder_num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "use_sliding_window": True,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "in_channels": 3 * LATENT_WIDTH,
        "audio_acoustic_hidden_dim": LATENT_WIDTH,
        "timbre_hidden_dim": LATENT_WIDTH,
        "timbre_fix_frame": 750,
        "patch_size": 2,
        "pool_window_size": 5,
        "text_hidden_dim": TEXT_WIDTH,
        "num_lyric_encoder_hidden_layers": 2,
        "num_timbre_encoder_hidden_layers": 2,
        "num_attention_pooler_hidden_layers": 2,
        "num_audio_decoder_hidden_layers": 8,
        "fsq_dim": CONDITION_WIDTH,
        "fsq_input_levels": LEVELS,
        "fsq_input_num_quantizers": 1,
        "vocab_size": 64,
        "timestep_mu": -0.4,
        "timestep_sigma": 1.0,
        "data_proportion": 0.5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
    }
