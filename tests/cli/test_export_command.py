"""export, merge and check from the command line, on the demo model and a run's adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep.adapters import TriggerTag, attach, save_adapter
from acestep.adapters.attaching import attach_spec
from acestep.adapters.specs import LokrSpec, OftSpec
from acestep.adapters.targets import find_targets
from acestep.cli import main
from acestep.core.events import EventLog
from acestep.core.paths import write_json
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.identity import transformer_fingerprint
from acestep.model.loading import load_transformer
from acestep.settings import AdapterSettings, TrainSettings

Make = Callable[[AdapterSettings], Path]
LORA = AdapterSettings(rank=4, alpha=8, dropout=0)
DORA = LORA.changed(dora=True)
LOKR = AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=2, lokr_alpha=6)
OFT = AdapterSettings(adapter="oft", oft_block_size=8)


@pytest.fixture
def model(demo_checkpoint: Path) -> str:
    return str(demo_checkpoint / "acestep-v15-demo")


@pytest.fixture
def run(model: str, tmp_path: Path) -> Make:
    """A run folder as training leaves it, with an adapter of random weights in best/."""

    def make(settings: AdapterSettings) -> Path:
        folder = tmp_path / "run"
        checkpoint = resolve_checkpoint(model)
        torch.manual_seed(1)
        adapter = attach(load_transformer(checkpoint, torch.float32, "cpu"), settings)
        for parameter in adapter.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        save_adapter(adapter, folder / "best", TriggerTag("zork"))
        (folder / "best" / "training.json").write_text('{"step": 20, "reason": "lowest validation loss"}')
        values = {**TrainSettings().model_dump(mode="json"), **settings.model_dump(mode="json")}
        base = {"name": checkpoint.name, "path": model, "fingerprint": transformer_fingerprint(checkpoint)}
        record = {"schema_version": 1, "settings": values, "model": base, "tensors": {"dataset": "blues", "songs": 7}}
        write_json(folder / "run.json", record)
        log = EventLog(folder / "events.jsonl")
        for step, loss in ((0, 1.5), (20, 1.25), (40, 1.3)):
            log.emit("validation", step=step, loss=loss)
        return folder / "best"

    return make


def result(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([str(argument) for argument in (*arguments, "--json")])
    return code, json.loads(capsys.readouterr().out)


def test_adapters_of_other_trainers_are_checked_with_the_model(model, tmp_path, capsys):
    """OFT by the number of blocks; and a decomposed LoKr, whose output in the official app is not restated here."""
    for spec, kind, told in (
        (OftSpec(r=6, oft_block_size=0), "oft", [True, True]),
        (LokrSpec(linear_dim=2, linear_alpha=4, factor=4, weight_decompose=True), "lokr", [True, False]),
    ):
        transformer = load_transformer(resolve_checkpoint(model), torch.float32, "cpu")
        torch.manual_seed(1)
        adapter = attach_spec(transformer, kind, spec, find_targets(transformer, LORA))
        for parameter in adapter.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        folder = save_adapter(adapter, tmp_path / kind)
        code, found = result(capsys, "check", folder, "--model", model)
        assert code == 0 and [check["output_difference"] is not None for check in found["checks"]] == told


@pytest.mark.parametrize(
    ("settings", "formats"),
    [
        (LORA, ["comfyui", "diffusers", "peft"]),
        (DORA, ["comfyui", "peft"]),
        (LOKR, ["comfyui", "diffusers", "lycoris"]),
        (OFT, ["comfyui", "peft"]),
    ],
)
def test_exports_are_made_and_checked(settings, formats, run, model, tmp_path, capsys):
    adapter = run(settings)
    for name in formats:
        out = tmp_path / (f"{name}.safetensors" if name == "comfyui" else name)
        code, report = result(capsys, "export", adapter, "--to", name, "--out", out)
        assert code == 0 and report["new"] and Path(report["path"]) == out
        code, found = result(capsys, "check", out, "--original", adapter, "--model", model)
        check = found["checks"][0]
        assert code == 0 and check["good"] and check["used"] == check["keys"], check
        assert check["compared"] == check["modules"] and 0 <= check["output_difference"] < 0.05
        assert (out / "README.md").exists() == (name == "peft")
        code, report = result(capsys, "export", adapter, "--to", name, "--out", out)
        assert code == 0 and not report["new"]
    code, error = result(capsys, "export", adapter, "--to", "peft", "--out", adapter)
    assert code == 1 and ("lycoris" in error["fix"] if settings is LOKR else "overwritten" in error["error"])


def test_an_adapter_is_tried_in_every_format(run, capsys):
    code, found = result(capsys, "check", run(LORA), "--dtype", "fp32")
    assert code == 0 and len(found["checks"]) == 3 and list(found["not_written"]) == ["lycoris"]
    assert all(check["relative_difference"] < 1e-5 for check in found["checks"])


def test_a_wrong_file_fails_the_check(run, tmp_path, capsys):
    adapter = run(LORA)
    raw = tmp_path / "raw.safetensors"
    raw.write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    code, found = result(capsys, "check", raw, "--original", adapter)
    assert code == 1 and found["checks"][0]["largest_scale"] == 1.0
    assert main(["check", str(raw), "--original", str(adapter)]) == 1
    assert "NOT GOOD" in capsys.readouterr().out


def test_the_card_tells_of_the_run(run, tmp_path, capsys):
    adapter = run(LORA)
    result(capsys, "export", adapter, "--to", "comfyui", "--out", tmp_path / "a.safetensors", "--card")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    for part in ("# blues", "`zork, your caption`", "7 songs", "step 20", "| 20 | 1.25000 (best) |", "| rank | 4 |"):
        assert part in text
    assert str(tmp_path) not in text


def test_refusals_are_sentences(run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    adapter = run(DORA)
    code, error = result(capsys, "export", adapter, "--to", "diffusers", "--out", tmp_path / "d")
    assert code == 1 and "--dora refit" in error["fix"]
    refit = ("--dora", "refit", "--refit-rank", "8")
    code, report = result(capsys, "export", adapter, "--to", "diffusers", "--out", tmp_path / "d", *refit)
    assert code == 0 and any("%" in note for note in report["notes"])
    code, error = result(capsys, "export", adapter, "--to", "peft", "--out", tmp_path / "p", "--push", "me/zork")
    assert code == 1 and "HF_TOKEN" in error["fix"] and not (tmp_path / "p").exists()
    code, error = result(capsys, "check", tmp_path / "nothing")
    assert code == 1 and "nothing" in error["error"]
    assert main(["export", str(adapter), "--to", "kohya", "--out", "x"]) == 2


def test_strengths_are_refused_before_anything_is_played(run, model, tmp_path, capsys):
    play = ("generate", "--model", model, "--adapter", run(OFT), "--out", tmp_path / "a.wav", "--strength")
    code, error = result(capsys, *play, "1", "0.5")
    assert code == 1 and "strength 1 or 0, not 0.5" in error["error"]
    code, error = result(capsys, *play)
    assert code == 1 and "--strength" in error["fix"]
    assert not list(tmp_path.glob("*.wav"))


def test_a_merged_model_is_a_model(run, model, demo_checkpoint, tmp_path, capsys):
    adapter = run(LORA)
    code, report = result(capsys, "merge", adapter, "--model", model, "--out", tmp_path / "merged", "--strength", "0.5")
    assert code == 0 and report["new"] and report["modules"] > 0
    merged = resolve_checkpoint(tmp_path / "merged", [demo_checkpoint])
    assert load_transformer(merged, torch.float32, "cpu") is not None
    code, error = result(capsys, "merge", adapter, "--model", model, "--out", tmp_path / "merged")
    assert code == 1 and "overwritten" in error["error"]


def test_an_earlier_export_is_replaced_when_asked_and_nothing_else(
    run: Make, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = run(LORA), tmp_path / "for_app"
    assert result(capsys, "export", adapter, "--to", "peft", "--out", out)[0] == 0
    again = ("export", adapter, "--to", "peft", "--dtype", "fp32", "--out", out)
    code, error = result(capsys, *again)
    assert code == 1 and "overwritten" in error["error"]
    assert result(capsys, *again, "--replace")[1]["new"]
    (out / "song.wav").write_bytes(b"mine")
    code, error = result(capsys, *again, "--replace")
    assert code == 1 and "song.wav" in error["error"] and (out / "song.wav").is_file()


def test_takes_are_played_with_one_seed_after_the_other(
    run: Make, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play = ("generate", "--model", model, "--duration-s", "1", "--steps", "1", "--device", "cpu", "--takes", "2")
    code, played = result(capsys, *play, "--adapter", run(LORA), "--strength", "0", "1", "--out", tmp_path / "a.wav")
    assert code == 0
    names = [Path(piece["path"]).name for piece in played["pieces"]]
    assert names == [f"a_strength_{strength}_seed_{seed}.wav" for strength in (0, 1) for seed in (42, 43)]
    assert all(Path(piece["path"]).is_file() for piece in played["pieces"])
