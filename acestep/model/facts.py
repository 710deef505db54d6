"""Numbers and texts the published ACE-Step 1.5 models were trained with. No code here, and no torch."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

# Prompts ---------------------------------------------------------------------------------------------

INSTRUCTION = "Fill the audio semantic mask based on the given conditions:"
"""The text-to-music instruction; the final colon belongs to it."""

END_OF_TEXT = "<|endoftext|>"
"""The token that ends both prompts, written out in their text."""

NOT_AVAILABLE = "N/A"
"""What stands for an unknown tempo, key or metre."""

INSTRUMENTAL = "[Instrumental]"
"""The lyrics of music without a voice."""

UNKNOWN_LANGUAGE = "unknown"

FALLBACK_DURATION_S = 30
"""The length a prompt names when the real one is not known."""

TEXT_TOKENS = 256
"""The text prompt is cut after this many tokens."""

LYRIC_TOKENS = 2048
"""The lyric prompt is cut after this many tokens."""

_CODES = (
    "ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl no pa pl pt ro "
    "ru sa sk sr sv sw ta te th tl tr uk ur vi yue zh unknown"
)
LANGUAGES = tuple(_CODES.split())
"""The 51 language codes of the lyric prompt."""

TIME_SIGNATURES = ("2", "3", "4", "6")
"""Beats in a bar, as prompts name the metre."""

BPM_RANGE = (30, 300)
DURATION_RANGE_S = (10, 600)
"""The lengths the models were trained on; others work less well."""

# Latents ---------------------------------------------------------------------------------------------

LATENT_HOP = 1920
"""Samples of 48 kHz audio in one latent frame of the published VAE."""

LATENT_RATE = 25.0
"""Latent frames in a second: 48000 / LATENT_HOP."""

TIMBRE_FRAMES = 750
"""Frames of the silence latent (30 s) that stand in for a reference recording."""

CONTEXT_MASK = 1.0
"""Value of the context mask where music is to be made: everywhere, in text to music."""

# The checkpoint's config.json ------------------------------------------------------------------------

CONFIG_DEFAULTS: MappingProxyType[str, Any] = MappingProxyType(
    {
        "model_type": "acestep",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "use_sliding_window": True,
        "sliding_window": 128,
        "layer_types": None,  # None: sliding and full attention take turns, sliding first
        "in_channels": 192,
        "audio_acoustic_hidden_dim": 64,
        "patch_size": 2,
        "pool_window_size": 5,
        "text_hidden_dim": 1024,
        "timbre_hidden_dim": 64,
        "timbre_fix_frame": 750,
        "num_lyric_encoder_hidden_layers": 8,
        "num_timbre_encoder_hidden_layers": 4,
        "num_attention_pooler_hidden_layers": 2,
        "fsq_dim": 2048,
        "fsq_input_levels": (8, 8, 8, 5, 5, 5),
        "fsq_input_num_quantizers": 1,
        "timestep_mu": -0.4,
        "timestep_sigma": 1.0,
        "data_proportion": 0.5,
        "is_turbo": False,
        "model_version": "",
    }
)
"""What a field means when config.json leaves it out: the values of the 2B models. The encoder_* fields of
the XL models have no defaults; where they are missing, the plain sizes serve for the condition encoder too."""
