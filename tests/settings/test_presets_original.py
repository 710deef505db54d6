"""Presets and profiles of the ace-lora-trainer app come in; nothing is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep.core.errors import UserError
from acestep.settings import TrainSettings
from acestep.settings.interchange import import_settings
from acestep.settings.original import from_original, from_original_profile

PRESET: dict[str, Any] = {
    "_description": "High quality.",
    "adapter_type": "lora",
    "optimizer_type": "adamw",
    "scheduler_type": "cosine",
    "learning_rate": 5e-5,
    "batch_size": 1,
    "gradient_accumulation_steps": 4,
    "max_epochs": 100,
    "save_every_n_epochs": 250,
    "warmup_steps": 200,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "encoder_offloading": False,
    "torch_compile": False,
    "max_latent_length": 1500,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "cfg_dropout_prob": 0.15,
    "loss_weighting": "min_snr",
    "snr_gamma": 5.0,
    "auto_save_best_after": 200,
    "early_stop_patience": 200,
    "attention_type": "both",
}

# every control of the page that a profile stores
UI_STATE: dict[str, Any] = {
    "custom_ckpt_dir": "",
    "checkpoint_dropdown": "acestep-v15-turbo",
    "split_input_dir": "/in",
    "split_output_dir": "",
    "split_duration": "30",
    "audio_directory": "/music",
    "load_dataset_path": "",
    "dataset_name": "my songs",
    "custom_tag": "zydeco",
    "tag_position": "append",
    "all_instrumental": True,
    "genre_ratio": 30,
    "skip_metas": False,
    "only_unlabeled": False,
    "save_path": "./d.json",
    "preprocess_output_dir": "./t",
    "max_duration_slider": 180,
    "gpu_preset": "Custom",
    "training_tensor_dir": ".",
    "adapter_type": "LoKr",
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.05,
    "lokr_factor": -1,
    "lokr_linear_dim": 10000,
    "lokr_linear_alpha": 1.0,
    "lokr_decompose_both": False,
    "lokr_use_tucker": False,
    "lokr_dropout": 0.1,
    "learning_rate": 3e-4,
    "max_epochs": 500,
    "batch_size": 2,
    "gradient_accumulation": 3,
    "optimizer_type": "adamw",
    "scheduler_type": "linear",
    "attention_type": "self",
    "model_type_radio": "turbo",
    "shift": 3.0,
    "seed": 7,
    "timestep_mu": -0.2,
    "timestep_sigma": 0.8,
    "cfg_dropout_prob": 0.2,
    "guidance_scale": 7.0,
    "num_inference_steps": 60,
    "save_every_n_epochs": 50,
    "early_stop_enabled": False,
    "early_stop_patience_val": 80,
    "auto_save_best_after": 200,
    "max_latent_length": 1000,
    "gradient_checkpointing_enabled": True,
    "encoder_offloading_enabled": True,
    "torch_compile_enabled": False,
    "lora_output_dir": "./lora_output",
    "sample_enabled": True,
    "sample_every_n": 10,
    "sample_prompt": "a waltz",
    "sample_lyrics": "",
    "sample_bpm": 120,
    "sample_key": "A minor",
    "sample_time_sig": "3",
    "sample_duration": 20,
    "sample_strengths": "0.5, 1.0",
    "sample_inf_steps": 0,
    "sample_guidance": 0,
    "sample_shift": 0,
    "sample_seed": 0,
    "loss_weighting": "none",
    "snr_gamma": 5,
    "nan_detection_max": 10,
    "audio_norm_dropdown": "peak",
    "resume_enabled": False,
    "resume_dir": "",
    "resume_checkpoint_dropdown": None,
    "estimate_tensor_dir": "",
    "estimate_batches": 10,
    "estimate_granularity": "layer",
    "estimate_top_k": 20,
    "export_path": "",
    "merge_base_model": "",
    "merge_lora_dir": "",
    "merge_checkpoint_dropdown": None,
    "merge_output_dir": "",
}


def test_a_preset_becomes_settings() -> None:
    found = from_original(PRESET)
    assert found.description == "High quality."
    settings = TrainSettings.parse(found.values, "x")
    assert (settings.rank, settings.alpha, settings.dropout, settings.epochs) == (128, 256, 0.05, 100)
    assert (settings.gradient_accumulation, settings.save_every_epochs, settings.warmup_steps) == (4, 250, 200)
    assert settings.condition_dropout == 0.15 and settings.gradient_checkpointing == 1
    assert "the run has 100" in found.ignored["auto_save_best_after"]
    assert "never loads" in found.ignored["encoder_offloading"]
    for foreign, ours in (("loss_weighting", "loss_weighting"), ("early_stop_patience", "patience")):
        assert (foreign in found.ignored) is (ours not in found.values)


def test_missing_keys_leave_our_settings_alone() -> None:
    assert set(from_original({"lora_r": 8, "lora_alpha": 16, "max_epochs": 5}).values) == {"rank", "alpha", "epochs"}


def test_a_profile_fills_every_stage() -> None:
    found = from_original_profile({"schema_version": 1, "ui_state": UI_STATE, "dataset_state": {"samples": [1]}})
    assert found.sections["dataset"] == {
        "name": "my songs",
        "trigger_word": "zydeco",
        "tag_position": "append",
        "genre_ratio": 30,
    }
    assert found.sections["preprocess"] == {"max_duration_s": 180.0, "normalize": "peak"}
    generate = found.sections["generate"]
    assert (generate["caption"], generate["lyrics"], generate["bpm"]) == ("a waltz", "[Instrumental]", 120)
    assert (generate["steps"], generate["guidance"], generate["shift"], generate["seed"]) == (None, None, None, 0)
    settings = TrainSettings.parse(found.values, "x")
    assert (settings.adapter, settings.rank, settings.lokr_dim, settings.lokr_dropout) == ("lokr", 32, 10000, 0.1)
    assert (settings.attention, settings.schedule, settings.seed, settings.batch_size) == ("self", "linear", 7, 2)
    assert {"checkpoint_dropdown", "audio_directory", "sample_strengths", "dataset_state"} <= set(found.ignored)
    assert not any("no setting of" in reason for reason in found.ignored.values())


def test_every_control_is_used_named_or_empty() -> None:
    found = from_original_profile({"ui_state": {**UI_STATE, "made_up": 1}})
    assert "made_up" in found.ignored
    assert len(UI_STATE) == 82


@pytest.mark.parametrize("values", [{"ui_state": []}, {"ui_state": {"lora_rank": "x"}}, {"ui_state": {"lora_rank": 0}}])
def test_profiles_with_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        from_original_profile(values)


def test_files_are_recognised_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, rank in (
        (PRESET, 128),
        ({"ui_state": UI_STATE, "schema_version": 1}, 32),
        ({"schema_version": 1, "rank": 12}, 12),
        ({"rank": 24, "alpha": 48, "epochs": 3, "gradient_accumulation": 1}, 24),
    ):
        path.write_text(json.dumps(content))
        assert import_settings(path).values["rank"] == rank
    path.write_text(json.dumps({"schema_version": 1, "rnak": 12}))
    with pytest.raises(UserError, match='Did you mean "rank"'):
        import_settings(path)
