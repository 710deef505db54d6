"""Training presets and profiles of the ace-lora-trainer app, in.

A preset is a flat list of training values, a profile the values of every control of that app's page under
`ui_state`. Profiles also fill the settings of the dataset, of preprocessing and of generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acestep.core.errors import UserError
from acestep.settings.foreign import ForeignKey, ForeignReader, Imported

PROGRAM = "ace-lora-trainer"

_SAMPLES = "not supported: previews while training are not set by this file."
_PREVIEWS_ONLY = "not used: the app plays previews with it and never trains with it."
_PLACE = "not part of the settings: folders, models and files are given on the command line."
_PAGE = "not part of the settings: it chose what the page showed or did next."
_NO_ENCODERS = "not needed: training here reads tensors and never loads the encoders."

_WITH_SNR = ("loss_weighting", ("min_snr",))
_MODEL_DEFAULT = {0: None}

_K = ForeignKey

TRAINING_KEYS: tuple[ForeignKey, ...] = (
    _K("adapter_type", "text", "adapter", words={"LoRA": "lora", "LoKr": "lokr"}),
    _K("lora_r", "whole", "rank", aliases=("lora_rank",)),
    _K("lora_alpha", "number", "alpha"),
    _K("lora_dropout", "number", "dropout"),
    _K("lokr_factor", "whole", "lokr_factor"),
    _K("lokr_linear_dim", "whole", "lokr_dim"),
    _K("lokr_linear_alpha", "number", "lokr_alpha"),
    _K("lokr_decompose_both", "switch", "lokr_decompose_both"),
    _K("lokr_use_tucker", "switch", "lokr_tucker"),
    _K("lokr_dropout", "number", "lokr_dropout"),
    _K("attention_type", "text", "attention"),
    _K("train_mlp", "switch", "train_mlp"),
    _K("learning_rate", "number", "learning_rate", by_hand=True),
    _K("optimizer_type", "text", "optimizer", by_hand=True),
    _K("scheduler_type", "text", "schedule", by_hand=True),
    _K("batch_size", "whole", "batch_size"),
    _K("gradient_accumulation_steps", "whole", "gradient_accumulation", aliases=("gradient_accumulation",)),
    _K("max_epochs", "whole", "epochs"),
    _K("save_every_n_epochs", "whole", "save_every_epochs"),
    _K("warmup_steps", "whole", "warmup_steps"),
    _K("weight_decay", "number", "weight_decay"),
    _K("max_grad_norm", "number", "max_grad_norm"),
    _K("mixed_precision", "text", "precision"),
    _K("seed", "whole", "seed"),
    _K("timestep_mu", "number", "timestep_mu"),
    _K("timestep_sigma", "number", "timestep_sigma"),
    _K("cfg_dropout_prob", "number", "condition_dropout"),
    _K("loss_weighting", "text", "loss_weighting", neutral=("none",)),
    _K("snr_gamma", "number", "snr_gamma", matters=_WITH_SNR),
    _K("max_latent_length", "whole", "max_latent_length"),
    _K("gradient_checkpointing", "switch", "gradient_checkpointing", aliases=("gradient_checkpointing_enabled",)),
    _K("encoder_offloading", "switch", aliases=("encoder_offloading_enabled",), reason=_NO_ENCODERS),
    _K("torch_compile", "switch", "compile", neutral=(False,), aliases=("torch_compile_enabled",), by_hand=True),
    _K("auto_save_best_after", "whole", "best_after_share", by_hand=True),
    _K("early_stop_enabled", "switch", default=True, by_hand=True),
    _K("early_stop_patience", "whole", "early_stop_patience", by_hand=True),
    _K("nan_detection_max", "whole", "nan_limit", words={0: 10}),
    _K("log_every_n_steps", "whole", "log_every"),
    _K("num_workers", "whole", reason="not needed: the songs are held in memory."),
    _K("pin_memory", "switch", reason="not needed: the songs are held in memory."),
    _K("dynamic_shift", "switch", neutral=(False,), reason="not used: the app never reads it."),
    *(_K(name, "number", reason=_PREVIEWS_ONLY) for name in ("shift", "num_inference_steps", "guidance_scale")),
    _K("model_type", "text", reason="not needed: the model says itself what it is.", aliases=("model_type_radio",)),
    _K("output_dir", "text", reason=_PLACE, aliases=("lora_output_dir",)),
)
"""Keys of its JSON presets, of its training configuration and of the training tab of a profile."""

_PAGE_KEYS: tuple[ForeignKey, ...] = (
    _K("early_stop_patience_val", "whole", by_hand=True),
    _K("dataset_name", "text", "name", "dataset"),
    _K("custom_tag", "text", "trigger_word", "dataset"),
    _K("tag_position", "text", "tag_position", "dataset"),
    _K("genre_ratio", "whole", "genre_ratio", "dataset"),
    _K("max_duration_slider", "number", "max_duration_s", "preprocess"),
    _K("audio_norm_dropdown", "text", "normalize", "preprocess"),
    _K("sample_prompt", "text", "caption", "generate"),
    _K("sample_lyrics", "text", "lyrics", "generate", words={"": "[Instrumental]"}),
    _K("sample_bpm", "whole", "bpm", "generate", words=_MODEL_DEFAULT),
    _K("sample_key", "text", "keyscale", "generate"),
    _K("sample_time_sig", "text", "timesignature", "generate"),
    _K("sample_duration", "number", "duration_s", "generate"),
    _K("sample_inf_steps", "whole", "steps", "generate", words=_MODEL_DEFAULT),
    _K("sample_guidance", "number", "guidance", "generate", words=_MODEL_DEFAULT),
    _K("sample_shift", "number", "shift", "generate", words=_MODEL_DEFAULT),
    _K("sample_seed", "whole", "seed", "generate"),
    _K("sample_enabled", "switch", neutral=(False,), reason=_SAMPLES),
    _K("sample_every_n", "whole", neutral=(0,), reason=_SAMPLES),
    _K("sample_strengths", "text", neutral=("",), reason=_SAMPLES),
)

_PLACES = (
    "custom_ckpt_dir",
    "checkpoint_dropdown",
    "split_input_dir",
    "split_output_dir",
    "audio_directory",
    "load_dataset_path",
    "save_path",
    "preprocess_output_dir",
    "training_tensor_dir",
    "resume_dir",
    "resume_checkpoint_dropdown",
    "estimate_tensor_dir",
    "export_path",
    "merge_base_model",
    "merge_lora_dir",
    "merge_checkpoint_dropdown",
    "merge_output_dir",
)
_PAGE_STATE = (
    "split_duration",
    "all_instrumental",
    "skip_metas",
    "only_unlabeled",
    "gpu_preset",
    "resume_enabled",
    "estimate_batches",
    "estimate_granularity",
    "estimate_top_k",
)


def from_original(values: Mapping[str, Any]) -> Imported:
    """Our settings for a training preset of the app. Keys that are missing leave ours as they are."""
    reader = ForeignReader(PROGRAM, TRAINING_KEYS, values)
    _read_training(reader)
    return reader.finish(description=str(values.get("_description", "")))


def from_original_profile(profile: Mapping[str, Any]) -> Imported:
    """Our settings, for every stage, from a profile of the app."""
    state = profile.get("ui_state")
    if not isinstance(state, dict):
        raise UserError(f'A profile of {PROGRAM} must hold the object "ui_state".', fix="Choose another file.")
    rest = {name: state[name] for name in state if name not in (*_PLACES, *_PAGE_STATE)}
    reader = ForeignReader(PROGRAM, (*TRAINING_KEYS, *_PAGE_KEYS), rest)
    reader.ignored |= {name: _PLACE for name in _PLACES if state.get(name)}
    reader.ignored |= {name: _PAGE for name in _PAGE_STATE if state.get(name)}
    if profile.get("dataset_state"):
        reader.ignored["dataset_state"] = "not read: save the dataset in the app and open that file."
    if "early_stop_patience_val" in reader.given:
        reader.given.setdefault("early_stop_patience", reader.given["early_stop_patience_val"])
    _read_training(reader)
    return reader.finish()


def _read_training(reader: ForeignReader) -> None:
    reader.read_rows()
    _read_optimizer(reader)
    _read_end(reader)
    if reader.given.get("torch_compile"):
        reader.ignore("torch_compile", "not used: this program compiles by itself where that pays.")


def _read_optimizer(reader: ForeignReader) -> None:
    """Its constant rate warms up, and Prodigy always gets that one."""
    schedule = reader.given.get("scheduler_type")
    if schedule == "constant" or (schedule and reader.given.get("optimizer_type") == "prodigy"):
        schedule = "constant_with_warmup"
    if schedule:
        reader.set("schedule", schedule, "scheduler_type")
    reader.set_optimizer_and_rate()


def _read_end(reader: ForeignReader) -> None:
    """The app looks for the best epoch, and stops early, only after an epoch that must lie within the run."""
    after, epochs = reader.given.get("auto_save_best_after"), reader.given.get("max_epochs")
    patience = reader.given.get("early_stop_patience", 0) if reader.value("early_stop_enabled") else 0
    if after and epochs is not None:
        reader.set_best_after(after, epochs, "auto_save_best_after")
    elif after:
        reader.ignore("auto_save_best_after", "not used: it is an epoch, and the file says not how many there are.")
    if patience and (after == 0 or (after and epochs is not None and after >= epochs)):
        reader.ignore("early_stop_patience", "not used: the app stops early only where it looks for the best epoch.")
    elif patience:
        reader.set_patience(patience, "early_stop_patience")
