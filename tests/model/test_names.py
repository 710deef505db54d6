"""Original and diffusers names: every published parameter, both ways, without remainder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.model.config import DitConfig
from acestep.model.names import (
    PARTS,
    module_to_diffusers,
    module_to_original,
    part_of,
    to_diffusers,
    to_original,
)

KEYS = Path(__file__).parent / "keys"
CONFIGS: dict[str, dict[str, Any]] = {
    "turbo_2b": {"is_turbo": True},
    "base_2b": {},
    "xl": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "encoder_hidden_size": 2048,
        "encoder_intermediate_size": 6144,
        "encoder_num_attention_heads": 16,
        "encoder_num_key_value_heads": 8,
    },
}
COUNTS = {"turbo_2b": 677, "base_2b": 677, "xl": 829}


def published(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()}


def diffusers_shapes(config: DitConfig) -> dict[tuple[str, str], tuple[int, ...]]:
    """Names and shapes of the parameters of the four diffusers classes for a configuration."""
    from diffusers import AceStepConditionEncoder, AceStepTransformer1DModel
    from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

    with torch.device("meta"):
        modules = {
            "transformer": AceStepTransformer1DModel(**config.transformer_kwargs()),
            "condition_encoder": AceStepConditionEncoder(**config.condition_encoder_kwargs()),
            "audio_tokenizer": AceStepAudioTokenizer(**config.tokenizer_kwargs()),
            "audio_token_detokenizer": AceStepAudioTokenDetokenizer(**config.detokenizer_kwargs()),
        }
    return {
        (part, name): tuple(parameter.shape)
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("size", CONFIGS)
def test_every_published_parameter_is_one_of_diffusers_with_its_shape(size: str) -> None:
    keys = published(size)
    assert len(keys) == COUNTS[size]
    translated = {to_diffusers(key): shape for key, shape in keys.items()}
    assert len(translated) == len(keys)
    assert translated == diffusers_shapes(DitConfig.from_values(CONFIGS[size], "test"))


@pytest.mark.parametrize("size", CONFIGS)
def test_every_published_parameter_comes_back(size: str) -> None:
    for key in published(size):
        assert to_original(*to_diffusers(key)) == key


@pytest.mark.parametrize(
    ("original", "part", "name"),
    [
        (
            "decoder.layers.3.self_attn.q_proj.weight",
            "transformer",
            "layers.3.self_attn.to_q.weight",
        ),
        ("decoder.layers.3.cross_attn.o_proj.weight", "transformer", "layers.3.cross_attn.to_out.0.weight"),
        ("decoder.layers.3.cross_attn.k_norm.weight", "transformer", "layers.3.cross_attn.norm_k.weight"),
        ("decoder.layers.3.self_attn_norm.weight", "transformer", "layers.3.self_attn_norm.weight"),
        ("decoder.proj_in.1.bias", "transformer", "proj_in_conv.bias"),
        ("decoder.proj_out.1.weight", "transformer", "proj_out_conv.weight"),
        ("detokenizer.proj_out.weight", "audio_token_detokenizer", "proj_out.weight"),
        (
            "encoder.lyric_encoder.layers.7.self_attn.v_proj.weight",
            "condition_encoder",
            "lyric_encoder.layers.7.self_attn.to_v.weight",
        ),
        (
            "tokenizer.attention_pooler.layers.1.self_attn.q_norm.weight",
            "audio_tokenizer",
            "attention_pooler.layers.1.self_attn.norm_q.weight",
        ),
        ("tokenizer.quantizer.project_in.weight", "audio_tokenizer", "quantizer.project_in.weight"),
        ("null_condition_emb", "condition_encoder", "null_condition_emb"),
    ],
)
def test_examples(original: str, part: str, name: str) -> None:
    assert to_diffusers(original) == (part, name)
    assert to_original(part, name) == original  # type: ignore[arg-type]


def test_adapter_module_paths_of_a_real_transformer() -> None:
    from diffusers import AceStepTransformer1DModel

    with torch.device("meta"):
        transformer = AceStepTransformer1DModel(num_hidden_layers=2)
    paths = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    originals = {
        key.removeprefix("decoder.").removesuffix(".weight")
        for key in published("base_2b")
        if key.startswith("decoder.")
    }
    translated = [module_to_original(path) for path in paths]
    assert set(translated) <= originals
    assert [module_to_diffusers(path) for path in translated] == paths
    assert module_to_original("layers.0.self_attn.to_out.0") == "layers.0.self_attn.o_proj"
    assert module_to_original("layers.0.cross_attn.to_q") == "layers.0.cross_attn.q_proj"


@given(st.sampled_from(PARTS), st.text("abcqkv_.10", min_size=1, max_size=40))
def test_any_name_within_a_part_keeps_its_part(part: Any, name: str) -> None:
    assert part_of(to_original(part, name)) == part or to_original(part, name) == "null_condition_emb"


@given(
    st.integers(0, 99),
    st.sampled_from(["self_attn", "cross_attn"]),
    st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"]),
    st.sampled_from(["", ".weight", ".bias", ".lora_A.weight"]),
)
def test_attention_paths_come_back(layer: int, attention: str, module: str, tail: str) -> None:
    path = f"layers.{layer}.{attention}.{module}{tail}"
    assert module_to_diffusers(path) != path
    assert module_to_original(module_to_diffusers(path)) == path


@pytest.mark.parametrize("stranger", ["model.decoder.x", "decoder", "decoder.", "", "vae.conv", "null_condition_emb.x"])
def test_strangers_are_refused(stranger: str) -> None:
    assert part_of(stranger) is None
    with pytest.raises(UserError, match="not a parameter name"):
        to_diffusers(stranger)


def test_the_silence_latent_has_no_original_name() -> None:
    with pytest.raises(UserError, match=r"silence_latent\.pt"):
        to_original("condition_encoder", "silence_latent")
