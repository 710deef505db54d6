"""Side-Step's files in and out: every key, aliases, types, refusals, round trips."""

from __future__ import annotations

import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.settings import TrainSettings, fields_of
from acestep.settings.interchange import export_side_step, import_settings
from acestep.settings.side_step import KEYS, from_side_step, lost_in_side_step, to_side_step

# the keys of its presets with its defaults, written down from its published files
DEFAULTS: dict[str, Any] = {
    "name": "x",
    "description": "A preset.",
    "adapter_type": "lora",
    "rank": 64,
    "alpha": 128,
    "dropout": 0.1,
    "target_modules_str": "q_proj k_proj v_proj o_proj",
    "self_target_modules_str": "",
    "cross_target_modules_str": "",
    "attention_type": "both",
    "target_mlp": True,
    "bias": "none",
    "use_dora": False,
    "lokr_linear_dim": 64,
    "lokr_linear_alpha": 128,
    "lokr_factor": -1,
    "lokr_decompose_both": False,
    "lokr_use_tucker": False,
    "lokr_use_scalar": False,
    "lokr_weight_decompose": False,
    "loha_linear_dim": 64,
    "loha_linear_alpha": 128,
    "loha_factor": -1,
    "loha_use_tucker": False,
    "loha_use_scalar": False,
    "oft_block_size": 64,
    "oft_coft": False,
    "oft_eps": 6e-5,
    "learning_rate": 3e-4,
    "batch_size": 1,
    "gradient_accumulation": 4,
    "epochs": 1000,
    "max_steps": 0,
    "dataset_repeats": 1,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "seed": 42,
    "shift": 3.0,
    "num_inference_steps": 8,
    "crop_mode": "full",
    "chunk_duration": 0,
    "max_latent_length": 0,
    "chunk_decay_every": 10,
    "optimizer_type": "adamw",
    "scheduler_type": "cosine",
    "scheduler_formula": "",
    "timestep_mode": "continuous",
    "cfg_ratio": 0.15,
    "loss_weighting": "none",
    "snr_gamma": 5.0,
    "save_every": 50,
    "save_best": True,
    "save_best_after": 200,
    "save_best_every_n_steps": 0,
    "early_stop_patience": 0,
    "target_loss": 0,
    "target_loss_floor": 0.01,
    "target_loss_warmup": 50,
    "target_loss_smoothing": 0.98,
    "gradient_checkpointing": True,
    "gradient_checkpointing_ratio": 1.0,
    "offload_encoder": True,
    "log_every": 10,
    "log_heavy_every": 50,
    "ema_decay": 0,
    "val_split": 0,
    "adaptive_timestep_ratio": 0,
    "warmup_start_factor": 0.1,
    "cosine_eta_min_ratio": 0.01,
    "cosine_restarts_count": 4,
}

# name: rank, alpha, MLP, rate, batch, accumulation, epochs, warm-up, save every
BUILT_IN = {
    "recommended": (64, 128, True, 3e-4, 1, 4, 1000, 100, 50),
    "high_quality": (128, 256, True, 2e-4, 1, 4, 1000, 100, 50),
    "quick_test": (16, 32, True, 3e-4, 1, 4, 10, 10, 5),
    "vram_8gb": (16, 32, False, 3e-4, 1, 8, 1000, 100, 50),
    "vram_12gb": (32, 64, True, 3e-4, 1, 4, 1000, 100, 50),
    "vram_16gb": (64, 128, True, 3e-4, 2, 2, 1000, 100, 50),
    "vram_24gb_plus": (128, 256, True, 3e-4, 2, 2, 1000, 100, 50),
}
THEIRS = (
    *("rank", "alpha", "target_mlp", "learning_rate", "batch_size", "gradient_accumulation", "epochs"),
    *("warmup_steps", "save_every"),
)
OURS = (
    *("rank", "alpha", "train_mlp", "learning_rate", "batch_size", "gradient_accumulation", "epochs"),
    *("warmup_steps", "save_every_epochs"),
)


def imported(**values: Any):
    return from_side_step({**DEFAULTS, **values})


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_is_known_and_nothing_is_lost_on_the_way_out() -> None:
    assert set(DEFAULTS) <= {key.name for key in KEYS}
    found = from_side_step(DEFAULTS)
    assert not any("no setting of" in reason for reason in found.ignored.values())
    assert (found.name, found.description) == ("x", "A preset.")
    optional = {key for key in DEFAULTS if key.startswith(("loha_linear", "oft_block", "oft_eps"))}
    exported = set(to_side_step(TrainSettings()))
    assert exported >= set(DEFAULTS) - optional - {
        "shift",
        "num_inference_steps",
        "chunk_duration",
        "cosine_restarts_count",
    }


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_its_built_in_presets_become_the_same_run(name: str) -> None:
    values = dict(zip(THEIRS, BUILT_IN[name], strict=True))
    found = from_side_step({"name": name, **values, "optimizer_type": "adamw8bit", "save_best_after": 200})
    assert tuple(found.values[key] for key in OURS) == BUILT_IN[name]
    TrainSettings.parse(found.values, name)


def test_missing_keys_take_its_defaults() -> None:
    found = from_side_step({"rank": 8}).values
    assert (found["rank"], found["train_mlp"], found["epochs"], found["learning_rate"]) == (8, True, 1000, 3e-4)
    assert found["max_latent_length"] == 0 and found["gradient_checkpointing"] == 1


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("lr", "learning_rate", 0.0002),
        ("grad_accum", "gradient_accumulation", 3),
        ("gradient_accumulation_steps", "gradient_accumulation", 3),
        ("max_epochs", "epochs", 7),
        ("save_every_n_epochs", "save_every", 9),
        ("scheduler", "scheduler_type", "linear"),
        ("early_stop", "early_stop_patience", 12),
        ("projections", "target_modules_str", ["q_proj"]),
    ],
)
def test_aliases_mean_the_same_key(alias: str, name: str, value: Any) -> None:
    one, other = from_side_step({alias: value}), from_side_step({name: value})
    assert one == other
    both = from_side_step({alias: DEFAULTS[name], name: value})
    assert both.sections == other.sections
    assert "wins" in both.ignored[alias]


def test_numbers_in_text_are_numbers() -> None:
    text = {key: str(value) if not isinstance(value, bool) else str(value).lower() for key, value in DEFAULTS.items()}
    assert from_side_step(text).sections == from_side_step(DEFAULTS).sections


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", "many"),
        ("rank", 1.5),
        ("rank", True),
        ("rank", [1]),
        ("learning_rate", math.nan),
        ("dropout", "nan"),
        ("learning_rate", "inf"),
        ("target_mlp", "maybe"),
        ("target_mlp", 2),
        ("adapter_type", 5),
        ("target_modules_str", [1]),
        ("rank", "9" * 5000),
        ("learning_rate", 10**400),
    ],
)
def test_values_of_a_wrong_kind_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f'"{key}" must be'):
        imported(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("rank", 0), ("rank", 4096), ("dropout", 1.0), ("epochs", 0)])
def test_values_outside_the_bounds_are_refused_by_both_names(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f'"{key}" of Side-Step.*Setting "{key}"'):
        imported(**{key: value})


@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ({"crop_mode": "full", "max_latent_length": 750}, 0),
        ({"crop_mode": "seconds", "chunk_duration": 40}, 1000),
        ({"crop_mode": "latent", "max_latent_length": 750, "chunk_duration": 90}, 750),
        ({"chunk_duration": 30}, 750),
        ({"chunk_duration": 30, "max_latent_length": 500}, 500),
        ({}, 0),
    ],
)
def test_windows_follow_the_crop_mode(values: dict[str, Any], frames: int) -> None:
    assert from_side_step(values).values["max_latent_length"] == frames


def test_what_means_the_same_here_is_not_reported_and_the_rest_is() -> None:
    assert not set(imported(shift=3.0).ignored) & {"bias", "target_loss", "ema_decay", "lokr_use_scalar", "loha_factor"}
    found = imported(
        bias="all",
        target_loss=0.4,
        adaptive_timestep_ratio=0.5,
        warmup_start_factor=0.2,
        gradient_checkpointing_ratio=0.5,
        target_modules_str="q_proj v_proj to_k",
        made_up=1,
    )
    assert found.values["gradient_checkpointing"] == 0.5
    expected = {"bias", "target_loss", "adaptive_timestep_ratio", "warmup_start_factor", "made_up", "shift"}
    assert expected | {"num_inference_steps", "offload_encoder"} <= set(found.ignored)
    assert {key for key in found.ignored if "target_modules" in key} == {"target_modules_str"}
    assert all(reason.endswith((".", "?")) for reason in found.ignored.values())


@pytest.mark.parametrize(
    ("values", "own", "cross"),
    [
        ({"target_modules_str": "v_proj q_proj"}, "qv", "qv"),
        ({"target_modules_str": "q_proj", "self_target_modules_str": "k_proj o_proj"}, "ko", "q"),
        ({"cross_target_modules_str": "v_proj gate_proj"}, "qkvo", "v"),
        ({"attention_type": "self", "target_modules_str": "q_proj", "self_target_modules_str": "k_proj"}, "q", "q"),
    ],
)
def test_lists_of_modules_come_in_and_go_out(values: dict[str, Any], own: str, cross: str) -> None:
    settings = TrainSettings.parse(imported(**values).values, "x")
    assert ("".join(settings.self_modules), "".join(settings.cross_modules)) == (own, cross)
    back = TrainSettings.parse(from_side_step(to_side_step(settings)).values, "back")
    assert [back.projections_of(block) for block in ("self", "cross")] == [
        settings.projections_of(block) for block in ("self", "cross")
    ]


@pytest.mark.parametrize("kind", ["loha", "oft"])
def test_every_kind_of_adapter_comes_in_whole(kind: str) -> None:
    values = {"loha_linear_dim": 12, "loha_linear_alpha": 6, "oft_block_size": 32, "oft_coft": True, "oft_eps": 0.01}
    settings = TrainSettings.parse(imported(adapter_type=kind, **values).values, "x")
    found = (
        settings.loha_dim,
        settings.loha_alpha,
        settings.oft_block_size,
        settings.oft_constrained,
        settings.oft_eps,
    )
    assert settings.adapter == kind and found == (12, 6, 32, True, 0.01)
    assert to_side_step(settings).items() >= {**values, "adapter_type": kind}.items()


def test_a_formula_is_text_and_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    formula = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    found = imported(scheduler_type="custom", scheduler_formula=formula)
    TrainSettings.parse(found.values, "x")
    assert not proof.exists()
    assert "schedule_formula" not in found.values and "functions" in found.ignored["scheduler_formula"]


@pytest.mark.parametrize(
    ("values", "schedule"),
    [
        ({"scheduler_type": "custom", "scheduler_formula": "base_lr * (1 - progress)"}, "formula"),
        ({"scheduler_type": "cosine_restarts"}, "cosine_restarts"),
        ({"scheduler_type": "constant"}, "constant_with_warmup"),
        ({"scheduler_type": "constant", "warmup_steps": 0}, "constant"),
        ({"scheduler_type": "cosine", "optimizer_type": "prodigy"}, "constant_with_warmup"),
        ({"scheduler_type": "linear", "optimizer_type": "adafactor"}, "linear"),
    ],
)
def test_schedules_mean_the_same_rates(values: dict[str, Any], schedule: str) -> None:
    found = imported(**values)
    settings = TrainSettings.parse(found.values, "x")
    assert settings.schedule == schedule
    assert settings.optimizer == values.get("optimizer_type", "adamw")
    assert settings.schedule_formula == values.get("scheduler_formula", "")
    again = TrainSettings.parse(from_side_step(to_side_step(settings)).values, "x")
    assert again.schedule == schedule


def test_unknown_choices_are_named_and_a_rate_for_another_optimizer_is_not_taken() -> None:
    found = imported(optimizer_type="wonder", learning_rate=1.0, scheduler_type="zigzag", adapter_type="glora")
    assert {"optimizer_type", "learning_rate", "scheduler_type", "adapter_type"} <= set(found.ignored)
    settings = TrainSettings.parse(found.values, "x")
    assert settings.learning_rate == TrainSettings().learning_rate


def test_mlp_modules_in_a_list_switch_the_mlp_on() -> None:
    modules = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    found = imported(target_mlp=False, target_modules_str=modules)
    assert found.values["train_mlp"] is True and "target_modules_str" not in found.ignored


def test_repeats_become_epochs() -> None:
    found = imported(dataset_repeats=5, epochs=20, save_every=2)
    total = found.values["epochs"] * found.values.get("dataset_repeats", 1)
    assert total == 100


def strategy(item) -> st.SearchStrategy[Any]:
    """Any allowed value of a setting."""
    optional = type(None) in typing.get_args(item.annotation)
    kind = typing.get_args(item.annotation)[0] if optional else item.annotation
    low = item.minimum if item.minimum is not None else 0
    high = item.maximum if item.maximum is not None else 10_000
    if typing.get_origin(kind) is typing.Literal:
        found = st.sampled_from(typing.get_args(kind))
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = st.integers(int(low), int(high)).filter(lambda number: number or item.name != "lokr_factor")
    elif kind is float:
        found = st.floats(low, high, exclude_min=True, exclude_max=True)
    else:
        found = st.just(item.default)
    return found | st.none() if optional else found


# settings that Side-Step has a key for, in every value both sides know
SHARED = (
    *("attention", "train_mlp", "rank", "alpha", "dropout", "lokr_dim", "lokr_alpha", "lokr_factor"),
    *("lokr_decompose_both", "lokr_tucker", "loha_dim", "loha_alpha", "oft_block_size", "oft_constrained", "oft_eps"),
    *("max_latent_length", "condition_dropout", "learning_rate"),
    *("weight_decay", "max_grad_norm", "warmup_steps", "batch_size", "gradient_accumulation", "epochs", "max_steps"),
    *("seed", "save_every_epochs", "log_every", "timestep_mu", "timestep_sigma", "loss_weighting", "snr_gamma"),
    *("ema_decay",),
)


@given(st.fixed_dictionaries({item.name: strategy(item) for item in fields_of(TrainSettings) if item.name in SHARED}))
@settings(max_examples=150, deadline=None)
def test_round_trips_lose_nothing_both_sides_know(values: dict[str, Any]) -> None:
    ours = TrainSettings.parse(values, "drawn")
    exported = json.loads(json.dumps(to_side_step(ours)))
    back = TrainSettings.parse(from_side_step(exported).values, "back")
    assert {name: getattr(back, name) for name in SHARED} == {name: getattr(ours, name) for name in SHARED}
    assert to_side_step(back) == to_side_step(ours)
    assert not set(lost_in_side_step(ours)) & set(SHARED)


def test_what_side_step_has_no_place_for_is_named() -> None:
    lost = lost_in_side_step(TrainSettings(rslora=True, timestep_draw="single", validation_timesteps=3))
    assert {"rslora", "timestep_draw", "validation_timesteps"} <= set(lost)
    assert "dora" not in lost_in_side_step(TrainSettings(dora=True))
    assert "adapter" not in lost_in_side_step(TrainSettings(adapter="lokr"))
    assert "validation" not in lost_in_side_step(TrainSettings(validation="none"))


def test_files_go_out_and_in(tmp_path: Path) -> None:
    path = export_side_step(tmp_path / "mine", TrainSettings(rank=24), "About.")
    assert path.name == "mine.json" and json.loads(path.read_text())["name"] == "mine"
    found = import_settings(path)
    assert found.values["rank"] == 24 and found.description == "About."
    with pytest.raises(UserError, match="exists already"):
        export_side_step(path, TrainSettings())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "no settings file of"),
        ('{"rank": NaN, "alpha": 1, "epochs": 1}', '"rank" must be'),
        (" " * (1 << 20) + "{}", "larger than 1 MB"),
        ('{"rank": 1e999, "alpha": 1, "epochs": 1}', '"rank" must be'),
        ('{"a": 1, "b": 2}', "no settings file of"),
    ],
)
def test_files_that_are_none_are_refused_with_their_name(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "strange.json", text)
    with pytest.raises(UserError, match=message) as caught:
        import_settings(path)
    assert str(path) in str(caught.value)


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from([key.name for key in KEYS]), ANYTHING))
@settings(max_examples=200, deadline=None)
def test_any_content_is_settings_or_a_sentence(values: dict[str, Any]) -> None:
    try:
        found = from_side_step(values)
    except UserError as error:
        assert str(error)
    else:
        TrainSettings.parse(found.values, "drawn")


def test_patience_and_the_first_best_epoch_are_converted() -> None:
    found = from_side_step(
        {"rank": 8, "epochs": 100, "dataset_repeats": 2, "save_best_after": 25, "early_stop_patience": 12}
    )
    assert (found.values["best_after_share"], found.values["early_stop_patience"]) == (0.25, 24)
    assert any("24 judgements" in note for note in found.notes)
    never = from_side_step({"rank": 8, "epochs": 100, "save_best_after": 100})
    assert "the run has 100" in never.ignored["save_best_after"] and "best_after_share" not in never.values
