"""`acestep estimate` as users meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from acestep.cli import main
from acestep.cli.estimate_command import duration, forecast_lines
from acestep.core.gpu import GpuProcess, GpuReading
from acestep.training.forecast import Forecast, Memory

GIB = 1 << 30


@pytest.fixture(scope="module")
def tensors(demo_checkpoint: Path, demo_songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate") / "tensors"
    model = str(demo_checkpoint / "acestep-v15-demo")
    assert main(["preprocess", str(demo_songs), "--model", model, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def command(tensors: Path, demo_checkpoint: Path) -> list[str]:
    model = str(demo_checkpoint / "acestep-v15-demo")
    values = ["--max-latent-length", "50", "--rank", "8", "--device", "cpu", "--batches", "2"]
    return ["estimate", "--model", model, "--tensors", str(tensors), *values]


def test_the_table_and_the_cost_are_printed(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*command, "--by", "module", "--top", "3", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"Sensitivity on 2 windows of 2 songs", lines[0])
    rows = [line.split() for line in lines[2:5]]
    assert rows[0][-1] == "100%" and lines[5] == ""
    assert all(re.fullmatch(r"layers\.\d+\.\w+\.\w+_proj", row[0]) for row in rows)
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    rest = "\n".join(lines[6:])
    assert all(word in rest for word in ("Time: ", "Memory: ", "Disk: "))
    assert list(tmp_path.iterdir()) == []


def test_ranks_are_saved_and_all_is_in_the_data(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "ranks.json"
    assert main([*command, "--save", str(out), "--json", "--attention", "self"]) == 0
    data = json.loads(capsys.readouterr().out)
    saved = json.loads(out.read_text())
    assert saved["rank_pattern"] == data["rank_pattern"] and (saved["rank"], saved["alpha"]) == (8, 16)
    assert all(".self_attn." in name for name in saved["rank_pattern"])
    assert {"modules", "layers", "batches", "songs"} <= set(data["sensitivity"])
    assert {"seconds", "memory", "disk_bytes", "remedies"} <= set(data["forecast"])


def test_wrong_input_is_one_sentence(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["estimate", "--model", command[2], "--tensors", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main([*command, "--batches", "0"]) == 2
    assert 'Setting "batches"' in capsys.readouterr().err
    assert main([*command, "--adapter", "lokr", "--save", str(tmp_path / "ranks.json")]) == 1
    assert "Ranks are for LoRA" in capsys.readouterr().err


def forecast(peak: int | None, **changes: object) -> Forecast:
    values = {
        "device": "cuda:0",
        "steps": 1000,
        "step_s": None if peak is None else 2.0,
        "validations": 10,
        "validation_s": None if peak is None else 5.0,
        "memory": Memory(peak, 10 * GIB, 5 * GIB, GIB, GIB),
        "remedies": ("--gradient-checkpointing",),
        "checkpoint_bytes": 10**8,
        "checkpoints_kept": 3,
        "disk_bytes": 5 * 10**8,
        "disk_free_bytes": 10**8,
    }
    return Forecast(**{**values, **changes})  # type: ignore[arg-type]


def test_what_does_not_fit_comes_with_what_helps() -> None:
    gpu = GpuReading("Some Card", 2 * GIB, 12 * GIB, processes=(GpuProcess(7, "game", 900),))
    text = "\n".join(forecast_lines(forecast(int(9.6 * GIB)), gpu))
    assert "1000 steps of 2.00 s and 10 validations, about 34 min." in text
    assert "Memory: does not fit: at most 9.60 of 10.0 GiB free" in text and "the rest 2.60" in text
    assert "  --gradient-checkpointing\n  ending game (process 7, 900 MB)" in text
    assert "0.50 GB with 3 checkpoints of 100.0 MB, 0.1 GB free. That does not fit" in text
    ran_out = "\n".join(forecast_lines(forecast(None, checkpoint_bytes=None, disk_bytes=None), None))
    assert ran_out.startswith("Memory: does not fit: a step needs more than the 10.0 GiB free.")
    assert "Time" not in ran_out and "Disk" not in ran_out


def test_durations_read_well() -> None:
    assert [duration(value) for value in (3, 89, 120, 5399, 5460, 40000)] == [
        *("3 s", "89 s", "2 min"),
        *("1 h 30 min", "1 h 31 min", "11 h 7 min"),
    ]
