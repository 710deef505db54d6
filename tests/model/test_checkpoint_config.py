"""config.json: defaults, both layouts, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.model.config import DitConfig
from acestep.model.variants import VARIANTS, variant_of

XL = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "encoder_hidden_size": 2048,
    "encoder_intermediate_size": 6144,
    "encoder_num_attention_heads": 16,
    "encoder_num_key_value_heads": 8,
}


def config(**values: Any) -> DitConfig:
    return DitConfig.from_values(values, "config.json")


def test_an_empty_file_means_the_2b_base_model() -> None:
    found = config()
    assert (found.latent_width, found.condition_width, found.text_width) == (64, 2048, 1024)
    assert (found.timbre_frames, found.timestep_mu, found.timestep_sigma) == (750, -0.4, 1.0)
    assert not found.is_turbo
    arguments = found.transformer_kwargs()
    assert arguments["num_hidden_layers"] == 24
    assert arguments["layer_types"] == ["sliding_attention", "full_attention"] * 12


def test_xl_sizes_go_to_the_right_parts() -> None:
    found = config(**XL)
    assert found.transformer_kwargs()["hidden_size"] == 2560
    assert found.transformer_kwargs()["encoder_hidden_size"] == 2048
    for arguments in (found.condition_encoder_kwargs(), found.tokenizer_kwargs(), found.detokenizer_kwargs()):
        assert (arguments["hidden_size"], arguments["num_attention_heads"]) == (2048, 16)
        assert arguments["intermediate_size"] == 6144


def test_unknown_fields_are_kept() -> None:
    assert config(lyric_alignment_layers_config={"2": [6]})["lyric_alignment_layers_config"] == {"2": [6]}


def test_configurations_compare_by_value_and_can_be_copied() -> None:
    assert config(**XL) == DitConfig.from_values(XL, "elsewhere")
    assert config(**XL) != config()
    assert hash(config()) == hash(config())
    assert copy.deepcopy(config(**XL)) == config(**XL)


def test_the_newer_form_of_rope_is_understood() -> None:
    found = config(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert found.transformer_kwargs()["rope_theta"] == 5e5
    with pytest.raises(UserError, match="rope_parameters"):
        config(rope_parameters={"rope_type": "yarn"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "qwen3"),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("use_sliding_window", False),
        ("use_sliding_window", "yes"),
        ("layer_types", ["full_attention"] * 24),
        ("layer_types", ["sliding_attention", "full_attention"]),
        ("layer_types", "alternating"),
        ("hidden_size", -2048),
        ("hidden_size", "2048"),
        ("hidden_size", 2048.0),
        ("hidden_size", True),
        ("hidden_size", None),
        ("num_hidden_layers", 10**9),
        ("head_dim", 127),
        ("num_key_value_heads", 3),
        ("encoder_num_key_value_heads", 5),
        ("encoder_hidden_size", 0),
        ("in_channels", 128),
        ("timbre_hidden_dim", 32),
        ("num_lyric_encoder_hidden_layers", 25),
        ("fsq_input_levels", [8, 1]),
        ("fsq_input_levels", 8),
        ("rms_norm_eps", 0),
        ("rope_theta", "big"),
        ("timestep_sigma", 0.0),
        ("timestep_mu", float("nan")),
        ("attention_bias", 1),
        ("is_turbo", "true"),
        ("model_version", 15),
        ("sliding_window", None),
    ],
)
def test_what_cannot_be_built_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        config(**{name: value})
    assert f'config.json: "{name}" is {value!r}' in caught.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(config().values)), json_values)
def test_any_value_in_any_field_is_taken_or_refused(name: str, value: Any) -> None:
    try:
        found = config(**{name: value})
    except UserError as error:
        assert str(error).startswith("config.json")
    else:
        found.transformer_kwargs(), found.condition_encoder_kwargs(), found.tokenizer_kwargs()


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def diffusers_folder(folder: Path, **changes: dict[str, Any]) -> Path:
    """Configurations of a small model as diffusers saves them; `changes` by part."""
    shared = {
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": 1e-6,
        "sliding_window": 6,
        "layer_types": None,
        "_diffusers_version": "0.42.1",
    }
    encoder = {**shared, "hidden_size": 48, "intermediate_size": 112}
    parts: dict[str, dict[str, Any]] = {
        "transformer": {
            **shared,
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_hidden_layers": 4,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "patch_size": 2,
            "encoder_hidden_size": 48,
            "is_turbo": True,
            "model_version": "turbo",
        },
        "condition_encoder": {
            **encoder,
            "text_hidden_dim": 40,
            "timbre_hidden_dim": 8,
            "num_lyric_encoder_hidden_layers": 3,
            "num_timbre_encoder_hidden_layers": 2,
        },
        "audio_tokenizer": {
            **encoder,
            "fsq_dim": 48,
            "fsq_input_levels": [4, 4],
            "fsq_input_num_quantizers": 1,
            "pool_window_size": 5,
            "num_attention_pooler_hidden_layers": 1,
            "audio_acoustic_hidden_dim": 8,
        },
    }
    write(folder / "model_index.json", {"_class_name": "AceStepPipeline"})
    for part, values in parts.items():
        write(folder / part / "config.json", {**values, **changes.get(part, {})})
    return folder


def test_the_diffusers_layout_gives_the_same_configuration(tmp_path: Path) -> None:
    found = DitConfig.read(diffusers_folder(tmp_path))
    assert (found.latent_width, found.condition_width, found.text_width) == (8, 48, 40)
    assert (found.timestep_mu, found.timestep_sigma, found.is_turbo) == (-0.4, 1.0, True)
    assert found.transformer_kwargs()["hidden_size"] == 64
    assert found.condition_encoder_kwargs()["intermediate_size"] == 112
    assert found.condition_encoder_kwargs()["num_lyric_encoder_hidden_layers"] == 3
    assert found.tokenizer_kwargs()["fsq_input_levels"] == [4, 4]
    assert found.tokenizer_kwargs()["num_attention_pooler_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("condition_encoder", {"sliding_window": 7}),
        ("condition_encoder", {"hidden_size": 32}),
        ("audio_tokenizer", {"num_attention_heads": 8}),
    ],
)
def test_parts_of_different_models_are_refused(tmp_path: Path, part: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mixes parts"):
        DitConfig.read(diffusers_folder(tmp_path, **{part: change}))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        DitConfig.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        DitConfig.read(tmp_path)


def test_variants_have_their_sampler_defaults() -> None:
    assert set(VARIANTS) == {
        *("turbo", "base", "sft", "turbo-shift1", "turbo-shift3", "turbo-continuous"),
        *("xl-turbo", "xl-base", "xl-sft"),
    }
    for name, variant in VARIANTS.items():
        assert variant.is_turbo == ("turbo" in name)
        assert (variant.steps, variant.guidance) == ((8, 1.0) if variant.is_turbo else (50, 7.0))
        assert variant.folder == f"acestep-v15-{name}"
    assert (VARIANTS["turbo"].shift, VARIANTS["turbo-shift1"].shift, VARIANTS["base"].shift) == (3.0, 1.0, 1.0)
    assert VARIANTS["turbo"].repo == "ACE-Step/Ace-Step1.5"
    assert VARIANTS["xl-base"].repo == "ACE-Step/acestep-v15-xl-base"


def test_a_folder_of_unknown_name_gets_the_defaults_of_its_kind() -> None:
    turbo, base = config(is_turbo=True), config()
    assert variant_of(turbo, "acestep-v15-turbo") is VARIANTS["turbo"]
    assert variant_of(base, "acestep-v15-xl-base-diffusers") is VARIANTS["xl-base"]
    assert (variant_of(turbo, "mine").steps, variant_of(base, "mine").steps) == (8, 50)
    assert not variant_of(base, "acestep-v15-turbo").is_turbo
