"""Two processes compute what one does. `tests/ui/test_train_tab.py` has new interpreters train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
from hand_made import MakeStore, Shape, short_run
from safetensors.torch import load_file

from acestep import cli
from acestep.cli.command import Output
from acestep.core.device import DeviceChoice
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.settings import HardwareSettings
from acestep.training import processes
from acestep.training.processes import Processes, start_processes
from acestep.training.train import train


def run_two(store: Path, checkpoint: Checkpoint, out: Path, settings, *more: str) -> subprocess.CompletedProcess:
    config = out.with_suffix(".json")
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    arguments = ["--model", str(checkpoint.dit), "--tensors", str(store), "--out", str(out), "--config", str(config)]
    command = [
        sys.executable,
        "-m",
        "acestep",
        "train",
        *arguments,
        "--device",
        "cpu",
        "--devices",
        "2",
        "--json",
        *more,
    ]
    return forked.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_events(run / "events.jsonl", "step")]


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_two_processes_give_the_losses_of_one(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: str
) -> None:
    """Seven songs, three passes a step: two for one process, one for the other, at the end of an epoch none."""
    store = make_store([Shape(80)] * 7)
    settings = short_run(
        adapter=kind, validation="windows", max_latent_length=30, batch_size=1, gradient_accumulation=3, max_steps=7
    )
    train(checkpoint, store, tmp_path / "one", settings, Job())
    done = run_two(store.folder, checkpoint, tmp_path / "two", settings)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one process speaks, once
    assert (result["state"], result["step"]) == ("finished", 7)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    name = "adapter_model.safetensors" if kind == "lora" else "lokr_weights.safetensors"
    one, two = (load_file(tmp_path / run / "final" / name) for run in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-2, atol=1e-4)
    kinds = [event["kind"] for event in read_events(tmp_path / "two" / "events.jsonl")]
    assert kinds.count("start") == 1 and kinds.count("end") == 1


def test_two_processes_go_back_together(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The rate is far too high in one step only; what follows is again what one process computes."""
    store = make_store([Shape(80)] * 4)
    formula = "base_lr * (1 + 1e12 * max(0, 1 - abs(step - 4)))"
    changes = {"schedule": "formula", "schedule_formula": formula, "warmup_steps": 0, "dropout": 0.0}
    settings = short_run(validation="none", batch_size=1, gradient_accumulation=2, max_steps=20, nan_limit=3, **changes)
    train(checkpoint, store, tmp_path / "one", settings, Job())
    done = run_two(store.folder, checkpoint, tmp_path / "two", settings)
    assert done.returncode == 0, done.stderr
    backs = [list(read_events(tmp_path / name / "events.jsonl", "rollback")) for name in ("one", "two")]
    assert len(backs[0]) == len(backs[1]) == 1 and backs[0][0]["step"] == backs[1][0]["step"]
    after = backs[0][0]["step"]
    assert losses(tmp_path / "two")[after:] == pytest.approx(losses(tmp_path / "one")[after:], rel=1e-3)


def test_errors_of_several_processes_are_one_sentence(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = make_store([Shape(80)] * 3, condition_fingerprint="0" * 32)
    done = run_two(store.folder, checkpoint, tmp_path / "run", short_run())
    assert done.returncode == 1
    assert "condition encoder" in json.loads(done.stdout)["error"] and "Traceback" not in done.stderr


def test_what_all_processes_find_is_told_once_and_by_the_first(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The others leave with code 0: with another one Fabric kills the first, which still has files to write."""
    store, out = make_store([Shape(80)] * 4), tmp_path / "two"
    settings = short_run(
        validation="none",
        batch_size=1,
        gradient_accumulation=2,
        max_steps=300,
        learning_rate=1e3,
        schedule="constant",
        nan_limit=2,
    )
    done = run_two(store.folder, checkpoint, out, settings)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "2 steps in a row" in json.loads(done.stdout)["error"]
    (end,) = read_events(out / "events.jsonl", "end")
    assert end["state"] == "failed" and (out / "checkpoints").is_dir()
    refused = run_two(store.folder, checkpoint, out, settings)  # the first process alone sees the folder
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "already holds a run" in json.loads(refused.stdout)["error"]


def test_only_the_first_process_has_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(run=lambda options, job: Output({}, [], 130))
    assert cli.run(stopped, None, as_json=False) == 130  # type: ignore[arg-type]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.run(stopped, None, as_json=False) == 0  # type: ignore[arg-type]


def test_a_process_without_work_takes_its_part_in_fp16_too() -> None:
    """Two cards and one pass a step: the second has no loss of its own, and steps with the gradient of the first."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    fabric = SimpleNamespace(
        world_size=2,
        global_rank=1,
        strategy=SimpleNamespace(precision=SimpleNamespace(scaler=scaler)),
        all_reduce=lambda flat, reduce_op: flat + 8.0,  # what the first process adds
    )
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    Processes(fabric).add_up(SimpleNamespace(parameters=lambda: [weight]), torch.zeros(()))  # type: ignore[arg-type]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert weight.tolist() == [-2.0, -2.0, -2.0]


@pytest.mark.parametrize(("nccl", "device", "backend"), [(False, "cuda", "gloo"), (True, "cuda", None)])
def test_cards_of_windows_talk_by_gloo(
    monkeypatch: pytest.MonkeyPatch, nccl: bool, device: str, backend: str | None
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    fabrics: list[dict[str, Any]] = []

    def fabric(**given: Any) -> SimpleNamespace:
        fabrics.append(given)
        return SimpleNamespace(
            launch=lambda: None, world_size=2, global_rank=0, strategy=SimpleNamespace(precision=None)
        )

    monkeypatch.setattr(processes, "Fabric", fabric)
    start_processes(HardwareSettings(devices=2), DeviceChoice(device, "bf16", ""))  # type: ignore[arg-type]
    assert fabrics[0]["strategy"].process_group_backend == backend


def test_helpers_start_from_the_program_of_windows(tmp_path: Path) -> None:
    """acestep.exe is an archive to Python, whose main module is called "__main__" and cannot be run by that name."""
    script = (
        "import sys\n"
        "from lightning_fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd\n"
        "from acestep.training.processes import _can_be_started_again\n"
        "with _can_be_started_again():\n"
        "    print(*_basic_subprocess_cmd()[1:])\n"
        "print(*_basic_subprocess_cmd()[1:])\n"
    )
    program = tmp_path / "acestep.exe"
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("__main__.py", script)
    done = subprocess.run([sys.executable, str(program), "train", "--x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["-m acestep.__main__ train --x", "-m __main__ train --x"]
