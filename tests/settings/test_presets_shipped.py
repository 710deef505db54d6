"""Shipped presets: all there, all valid, the values of the programs they come from; the choice for a card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.settings import TrainSettings, presets
from acestep.settings.presets import GIB, auto_preset, load_preset, preset_files, preset_values, save_preset

SEVEN = ("quick_test", "recommended", "vram_8gb", "vram_12gb", "vram_16gb", "vram_24gb_plus", "high_quality")
TIERS = tuple(f"tier_{size}_{kind}" for size in ("8gb", "12gb", "16gb", "24gb") for kind in ("lora", "lokr"))
THREE = ("conservative", "balanced", "aggressive")

# rank, alpha, rate, batch, accumulation, epochs, save every, warm-up, checkpointing, window
ORIGINAL = {
    "quick_test": (16, 32, 1e-4, 1, 1, 10, 5, 10, False, 750),
    "recommended": (64, 128, 1e-4, 1, 4, 100, 10, 100, True, 1500),
    "vram_8gb": (16, 32, 1e-4, 1, 8, 100, 25, 50, True, 750),
    "vram_12gb": (32, 64, 1e-4, 1, 4, 100, 20, 100, True, 1500),
    "vram_16gb": (64, 128, 1e-4, 1, 4, 100, 10, 100, True, 1500),
    "vram_24gb_plus": (128, 256, 1e-4, 2, 2, 100, 10, 100, False, 1500),
    "high_quality": (128, 256, 5e-5, 1, 4, 1000, 250, 200, True, 1500),
}
KEYS = (
    *("rank", "alpha", "learning_rate", "batch_size", "gradient_accumulation", "epochs", "save_every_epochs"),
    *("warmup_steps", "gradient_checkpointing", "max_latent_length"),
)


def test_every_named_preset_is_there() -> None:
    assert set(preset_files()) >= {*SEVEN, *TIERS, *THREE, "demo"}


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_presets_are_valid_described_and_of_settings_alone(name: str) -> None:
    preset = load_preset(name)
    settings = TrainSettings.parse(preset.values, name)
    assert len(preset.description) > 10 and preset.description.endswith(".")
    assert all(note.endswith(".") for note in preset.notes)
    assert {key: getattr(settings, key) for key in preset.values} == preset.values


@pytest.mark.parametrize("name", SEVEN)
def test_the_seven_hold_the_values_of_the_original(name: str) -> None:
    values = preset_values(name)
    assert tuple(values[key] for key in KEYS) == ORIGINAL[name]
    assert values["condition_dropout"] == 0.15 and values["attention"] == "both"


def test_tiers_differ_by_adapter_as_the_original_has_it() -> None:
    rates = {name: preset_values(name)["learning_rate"] for name in TIERS}
    assert [rates[name] for name in TIERS] == [1e-4, 1e-4, 1e-4, 3e-4, 1e-4, 3e-4, 1e-4, 3e-4]
    for name in TIERS:
        values = preset_values(name)
        assert values["adapter"] == name.rpartition("_")[2]
        assert ("rank" in values) is (values["adapter"] == "lora")
        assert values["gradient_checkpointing"] == (name.split("_")[1] in ("8gb", "12gb"))


def test_optimizers_and_weighting_are_those_of_the_original() -> None:
    chosen = {name: preset_values(name)["optimizer"] for name in (*SEVEN, *TIERS)}
    assert [name for name, optimizer in chosen.items() if optimizer == "adamw8bit"] == [
        *("vram_8gb", "vram_12gb", "tier_12gb_lora")
    ]
    assert [name for name, optimizer in chosen.items() if optimizer == "prodigy"] == [
        "tier_16gb_lora",
        "tier_24gb_lora",
    ]
    assert [name for name, optimizer in chosen.items() if optimizer == "adafactor"] == [
        "tier_8gb_lora",
        "tier_8gb_lokr",
    ]
    assert preset_values("high_quality")["loss_weighting"] == "min_snr"
    assert {preset_values(name)["schedule"] for name in THREE} == {"cosine_restarts"}


def test_what_departs_from_the_source_is_said_in_the_file() -> None:
    for name in ("vram_8gb", "recommended", "tier_24gb_lora", "tier_8gb_lokr", "high_quality", "balanced"):
        assert load_preset(name).notes, name


@pytest.mark.parametrize(
    ("gib", "tier"),
    [
        (80, "24gb"),
        (24, "24gb"),
        (23.5, "24gb"),
        (22.2, "16gb"),
        (15.6, "16gb"),
        (11.7, "12gb"),
        (9.6, "12gb"),
        (7.8, "8gb"),
        (3, "8gb"),
        (None, "8gb"),
    ],
)
def test_auto_picks_by_the_size_a_card_is_sold_by(gib: float | None, tier: str) -> None:
    memory = None if gib is None else int(gib * GIB)
    assert auto_preset(memory, "lora") == f"tier_{tier}_lora"
    assert auto_preset(memory, "lokr") == auto_preset(memory, "loha") == f"tier_{tier}_lokr"


@given(st.none() | st.integers(0, 1 << 42), st.sampled_from(["lora", "lokr", "dora", "loha", "oft"]))
def test_auto_always_names_a_shipped_preset(memory: int | None, adapter: str) -> None:
    assert auto_preset(memory, adapter) in preset_files()


def test_saved_presets_are_found_by_name_and_never_replace_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "PRESETS_FOLDER", tmp_path)
    path = save_preset("my_voice", {"rank": 8}, "Mine.", ("A note.",))
    assert path == tmp_path / "my_voice.json"
    assert load_preset("my_voice").to_dict() == {
        "name": "my_voice",
        "path": str(path),
        "description": "Mine.",
        "notes": ["A note."],
        "values": {"rank": 8},
    }
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save_preset("my_voice", {"rank": 4}, "Other.")
    assert path.read_bytes() == before
    assert save_preset(str(tmp_path / "deep" / "x.json"), {}, "Nothing.").is_file()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "auto", "con", "a\\b"])
def test_names_that_are_no_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PRESETS_FOLDER", tmp_path / "presets")
    with pytest.raises(UserError, match="cannot be the name"):
        save_preset(name, {}, "")
    assert not list(tmp_path.rglob("*.json"))


def test_wrong_values_are_not_saved(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    with pytest.raises(UserError, match="rank"):
        save_preset(str(target), {"rank": 0}, "")
    assert not target.exists()


def test_a_preset_with_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"_note": 5, "rnak": 8}))
    with pytest.raises(UserError, match='Did you mean "rank"'):
        preset_values(str(path))
    path.write_text(json.dumps({"_note": "one", "rank": 8}))
    assert load_preset(str(path)).notes == ("one",)
