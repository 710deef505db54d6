"""`acestep presets` and `acestep import-tensors` as users meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep.cli import COMMANDS, main
from acestep.cli.arguments import parse_options
from acestep.core import device
from acestep.core.errors import UserError
from acestep.settings import TrainSettings
from acestep.settings.presets import GIB, preset_files, preset_values

SIDE_STEP = {"name": "voice", "description": "A voice.", "rank": 24, "alpha": 48, "epochs": 90, "bias": "all"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, error = run(capsys, *arguments, "--json")
    assert code == 0, error
    return json.loads(out)


def test_all_presets_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "presets")
    assert code == 0 and all(f"{name} " in out for name in preset_files())
    listed = data(capsys, "presets")["presets"]
    assert {preset["name"]: preset["values"] for preset in listed} == {
        name: preset_values(name) for name in preset_files()
    }


def test_one_preset_is_shown_with_values_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "presets", "vram_12gb")
    assert code == 0 and "rank: 32 (default 64)" in out and "Note: " in out
    code, _, error = run(capsys, "presets", "vram_12")
    assert code == 1 and 'Did you mean "vram_12gb"?' in error


def test_auto_is_the_tier_of_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def parsed(*arguments: str) -> Any:
        return parse_options(COMMANDS["train"].options, list(arguments), "acestep train", "")

    monkeypatch.setattr(device, "device_memory", lambda: None)
    assert data(capsys, "presets", "auto")["name"] == "tier_8gb_lora"
    monkeypatch.setattr(device, "device_memory", lambda: (1, int(23.6 * GIB)))
    assert data(capsys, "presets", "auto")["name"] == "tier_24gb_lora"
    assert parsed("--preset", "auto").batch_size == 3
    assert "tier_24gb_lora, for a card with 23.6 GiB" in capsys.readouterr().err
    options = parsed("--preset", "auto", "--adapter", "lokr", "--batch-size", "5")
    assert (options.adapter, options.lokr_dim, options.batch_size) == ("lokr", 10000, 5)
    config = tmp_path / "own.json"
    config.write_text('{"adapter": "lokr"}')
    assert parsed("--preset=auto", f"--config={config}").lokr_dim == 10000


def test_modules_and_their_ranks_are_given_as_flags_over_a_file(tmp_path: Path) -> None:
    def parsed(*arguments: str) -> Any:
        return parse_options(COMMANDS["train"].options, list(arguments), "acestep train", "")

    module, other = "layers.0.self_attn.q_proj", "layers.1.cross_attn.o_proj"
    options = parsed("--rank-pattern", f"{module}=16", f"{other}=8", "--self-modules", "v", "q", "--layers", "0-3")
    assert options.rank_pattern == {module: 16, other: 8}
    assert (options.self_modules, options.cross_modules, options.layers) == (("q", "v"), ("q", "k", "v", "o"), "0-3")
    config = tmp_path / "own.json"
    config.write_text(json.dumps({"rank_pattern": {module: 4}, "cross_modules": ["k"], "alpha_pattern": {module: 2.5}}))
    options = parsed(f"--config={config}")
    assert (options.rank_pattern, options.alpha_pattern) == ({module: 4}, {module: 2.5})
    assert options.cross_modules == ("k",)
    assert parsed(f"--config={config}", "--rank-pattern", f"{other}=8").rank_pattern == {other: 8}
    with pytest.raises(UserError, match="rank_pattern"):
        parsed("--rank-pattern", "q_proj=8")


def test_a_foreign_preset_is_read_saved_and_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, kept = tmp_path / "voice.json", tmp_path / "kept.json"
    file.write_text(json.dumps(SIDE_STEP))
    found = data(capsys, "presets", "--import", str(file), "--save", str(kept))
    assert found["sections"]["train"]["rank"] == 24 and "bias" in found["ignored"] and found["saved"] == str(kept)
    assert preset_values(str(kept)) == found["sections"]["train"]
    shown = data(capsys, "presets", str(kept))
    assert shown["description"] == "A voice." and any("bias" in note for note in shown["notes"])
    options = parse_options(COMMANDS["train"].options, ["--preset", str(kept)], "acestep train", "")
    assert (options.rank, options.alpha, options.epochs) == (24, 48, 90)
    code, out, _ = run(capsys, "presets", "--import", str(file))
    assert code == 0 and "Left out, bias: not supported" in out
    code, _, error = run(capsys, "presets", "--import", str(file), "--save", str(kept))
    assert code == 1 and "exists already" in error


def test_a_preset_goes_out_to_side_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    found = data(capsys, "presets", "balanced", "--export-side-step", str(file))
    written = json.loads(file.read_text())
    assert (written["rank"], written["alpha"], written["max_steps"]) == (64, 32, 5000)
    assert "rslora" in found["lost"]
    back = data(capsys, "presets", "--import", str(file))["sections"]["train"]
    settings = TrainSettings.parse(preset_values("balanced"), "x").model_dump(mode="json")
    assert {name for name, value in back.items() if settings[name] != value} <= set(found["lost"])
    code, _, error = run(capsys, "presets", "balanced", "--export-side-step", str(file))
    assert code == 1 and "exists already" in error


def test_advice_by_number_of_songs(capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, "presets", "--songs", "5", "--minutes", "15")
    assert (found["epochs"], found["save_every"]) == (1000, 200)
    code, out, _ = run(capsys, "presets", "recommended", "--songs", "30")
    assert code == 0 and "300 epochs for 30 songs" in out and "With preset recommended" in out
    assert main(["presets", "--songs", "0"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--save", "x"],
        ["--export-side-step", "x.json"],
        ["quick_test", "--songs", "10", "--export-side-step", "x.json"],
        ["demo", "--import", "x.json"],
        ["--import", "nowhere.json"],
    ],
)
def test_options_that_do_not_go_together_are_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(capsys, "presets", *arguments)
    assert code == 1 and error.count("\n") == 1 and not out


def test_old_tensors_are_taken_over(capsys: pytest.CaptureFixture[str], demo_checkpoint: Path, tmp_path: Path) -> None:
    from acestep.model.checkpoints import resolve_checkpoint

    folder = tmp_path / "old"
    folder.mkdir()
    width = resolve_checkpoint(demo_checkpoint).config.latent_width
    labels = {"caption": "a waltz", "filename": "one.wav"}
    torch.save({"target_latents": torch.randn(40, width), "metadata": labels}, folder / "one.pt")
    typed = [
        "import-tensors",
        str(folder),
        "--model",
        str(demo_checkpoint),
        "--out",
        str(tmp_path / "new"),
        "--device=cpu",
    ]
    found = data(capsys, *typed)
    assert (found["encoded"], found["problems"]) == (1, [])
    (folder / "two.pt").write_bytes(b"nothing")
    code, out, _ = run(capsys, *typed)
    assert code == 3 and "1 song in" in out and "1 file left out" in out and "two.pt" in out
