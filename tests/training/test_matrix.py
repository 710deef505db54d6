"""Every kind of adapter from its first step to a merged model, and every optimizer with every schedule."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
from hand_made import short_run
from safetensors.torch import load_file, save_file
from shared_folders import filled_once

from acestep.adapters import load_adapter
from acestep.adapters.exports.checking import check_adapter
from acestep.adapters.exports.formats import FORMATS, ExportOptions
from acestep.adapters.exports.merging import merge_adapter
from acestep.adapters.exports.opened import OpenAdapter
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import load_transformer
from acestep.preprocess.store import TensorStore
from acestep.settings import OptimizerSettings, TrainSettings
from acestep.training.runs import RunFolder, summarise
from acestep.training.train import TrainOutcome, train

ADAPTERS: dict[str, dict[str, object]] = {
    "lora": {},
    "rslora": {"rslora": True, "attention": "self"},
    "dora": {"dora": True, "train_mlp": True},
    "lokr": {"adapter": "lokr", "lokr_dropout": 0.1},
    "loha": {"adapter": "loha", "loha_dim": 4, "loha_alpha": 8},
    "oft": {"adapter": "oft", "oft_block_size": 8, "train_mlp": True},
    "coft": {"adapter": "oft", "oft_block_size": 8, "oft_constrained": True, "oft_eps": 0.5, "train_mlp": True},
}
EXPORTS = {
    "lora": {"comfyui", "diffusers", "peft"},
    "rslora": {"comfyui", "diffusers", "peft"},
    "dora": {"comfyui", "peft"},
    "lokr": {"comfyui", "diffusers", "lycoris"},
    "loha": {"comfyui"},
    "oft": {"comfyui", "peft"},
    "coft": {"comfyui", "peft"},
}
"""The formats that can hold a kind; the others have to refuse it."""

KILLED_AFTER = 5
"""Steps done when the signal is sent; the last checkpoint is of step 4."""


def adapter_run(kind: str) -> TrainSettings:
    changes = {"max_steps": 8, "validate_every": 4, "save_every_steps": 2, "keep_last": 0, "learning_rate": 1e-2}
    return short_run(gradient_accumulation=2, **changes, **ADAPTERS[kind])


@pytest.fixture(scope="module", params=ADAPTERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(
    kind: str, checkpoint: Checkpoint, eight_songs: TensorStore, tmp_path_factory: pytest.TempPathFactory
) -> TrainOutcome:
    """An uninterrupted run of this kind."""
    return train(checkpoint, eight_songs, tmp_path_factory.mktemp("whole") / kind, adapter_run(kind), Job())


# A process of its own forks a run of each kind and kills it from outside.
_KILLER = """
import json, os, signal, sys
from pathlib import Path
import lycoris, peft, torch
from acestep.core.jobs import Job
from acestep.model.checkpoints import resolve_checkpoint
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.training.train import train

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
for out, values in given["runs"].items():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        def listen(kind, what):
            if kind == "progress" and what.name == "train":
                os.write(writing, b".")
                if what.done == what.total - 1:
                    signal.pause()
        checkpoint, store = resolve_checkpoint(given["model"]), TensorStore.open(given["tensors"])
        train(checkpoint, store, Path(out), TrainSettings.parse(values, "test"), Job(listen))
        os._exit(1)
    os.close(writing)
    for _ in range(given["steps"]):
        assert os.read(reading, 1), out
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (out, status)
    os.close(reading)
"""


@pytest.fixture(scope="module")
def killed(checkpoint: Checkpoint, eight_songs: TensorStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each kind, each ended by SIGKILL somewhere after its fifth step."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")

    def train_and_kill(folder: Path) -> None:
        given = {
            "threads": torch.get_num_threads(),
            "steps": KILLED_AFTER,
            "model": str(checkpoint.dit),
            "tensors": str(eight_songs.folder),
            "runs": {str(folder / kind): adapter_run(kind).model_dump(mode="json") for kind in ADAPTERS},
        }
        done = forked.run([sys.executable, "-c", _KILLER, json.dumps(given)])
        assert done.returncode == 0, done.stderr

    return filled_once(tmp_path_factory, "killed-runs", train_and_kill)


def assert_same_files(first: Path, second: Path) -> None:
    """Every tensor of two folders, of adapters or of checkpoints, is the same bit for bit."""
    names = {file.name for file in first.glob("*.safetensors")}
    assert names == {file.name for file in second.glob("*.safetensors")} and names
    for name in names:
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == [], name


def course(run: Path) -> list[tuple[int, float, float]]:
    """Loss and learning rate of each step; of a step that was done twice, the last."""
    steps = {event["step"]: event for event in read_events(run / "events.jsonl", "step")}
    return [(step, event["loss"], event["learning_rate"]) for step, event in sorted(steps.items())]


def test_a_kind_of_adapter_learns(whole: TrainOutcome) -> None:
    assert not whole.stopped and whole.summary.step == 8
    assert whole.summary.best_validation < 0.99 * whole.summary.first_validation


def test_a_killed_run_of_a_kind_goes_on_to_the_same_bits(
    kind: str, whole: TrainOutcome, killed: Path, checkpoint: Checkpoint, eight_songs: TensorStore
) -> None:
    run = killed / kind
    assert summarise(RunFolder.open(run)).state == "interrupted"
    resumed = train(checkpoint, eight_songs, run, adapter_run(kind), Job(), resume=run)
    assert resumed.summary.best_validation == whole.summary.best_validation
    for part in ("final", "best", "checkpoints/step_000006", "checkpoints/step_000008"):
        assert_same_files(run / part, whole.run.path / part)
    assert course(run) == course(whole.run.path)
    starts = [event["step"] for event in read_events(run / "events.jsonl") if event["kind"] in ("start", "resume")]
    assert starts == [0, 4] or starts == [0, 6], "it went on from a checkpoint"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_trained_adapter_reads_back_from_every_format(
    kind: str, whole: TrainOutcome, checkpoint: Checkpoint, dtype: str
) -> None:
    opened = OpenAdapter(whole.adapter, checkpoint)
    checks, refused = check_adapter(opened, ExportOptions(dtype=dtype), Job())
    assert all(check.good and check.used == check.keys for check in checks), [check.lines for check in checks]
    assert all(check.compared == whole.modules for check in checks)
    assert set(refused) == set(FORMATS) - EXPORTS[kind] and len(checks) == len(EXPORTS[kind])
    assert all(sentence.endswith(".") and len(sentence) > 40 for sentence in refused.values()), refused


@pytest.fixture(scope="module")
def fp32_model(checkpoint: Checkpoint, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The demo model stored in fp32, so that rounding does not hide what a short run has learned."""
    folder = tmp_path_factory.mktemp("fp32") / "model"
    folder.mkdir()
    for file in checkpoint.dit.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint.dit / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    return resolve_checkpoint(folder, [demo_checkpoint])


def velocity(checkpoint: Checkpoint, adapter: Path | None = None) -> torch.Tensor:
    transformer = load_transformer(checkpoint, torch.float32, "cpu")
    if adapter:
        load_adapter(adapter, transformer)
    draw: Callable[..., torch.Tensor] = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(1))  # noqa: E731
    width, condition = checkpoint.config.latent_width, checkpoint.config.condition_width
    t = torch.tensor([0.6])
    with torch.no_grad():
        return transformer(draw(1, 20, width), t, t, draw(1, 7, condition), draw(1, 20, 2 * width))[0]


def test_a_trained_adapter_merged_is_attached(
    whole: TrainOutcome, fp32_model: Checkpoint, demo_checkpoint: Path, tmp_path: Path
) -> None:
    report = merge_adapter(whole.adapter, fp32_model, tmp_path / "merged")
    assert report.modules == whole.modules
    plain, attached = velocity(fp32_model), velocity(fp32_model, whole.adapter)
    merged = velocity(resolve_checkpoint(tmp_path / "merged", [demo_checkpoint]))
    effect = float((attached - plain).abs().max())
    assert effect > 1e-3
    assert float((attached - merged).abs().max()) < 1e-3 * effect


def choices(name: str) -> tuple[str, ...]:
    return OptimizerSettings.model_fields[name].annotation.__args__


CELLS: dict[str, dict[str, object]] = {
    f"{optimizer}-{schedule}": {"optimizer": optimizer, "schedule": schedule}
    for optimizer, schedule in itertools.product(choices("optimizer"), choices("schedule"))
    if optimizer != "schedule_free" or schedule == "cosine"  # it has no schedule: any other is the same run
}
CELLS["ema"] = {"ema_decay": 0.9}
CELLS["ema-prodigy"] = {"ema_decay": 0.9, "optimizer": "prodigy"}
CELLS["stratified"] = {"stratified_timesteps": True, "loss_weighting": "min_snr"}


def stop_after(steps: int) -> Job:
    """A job that is asked to stop while the given step goes on."""

    def listen(event: str, what: object) -> None:
        if event == "progress" and getattr(what, "name", "") == "train" and what.done == steps:
            job.request_stop()

    job = Job(listen)
    return job


@pytest.mark.parametrize("cell", CELLS)
def test_stop_and_resume_equal_an_uninterrupted_run(
    cell: str, checkpoint: Checkpoint, eight_songs: TensorStore, tmp_path: Path
) -> None:
    """Five of twelve steps, past the warm-up and the first warm restart, with a stop after the second."""
    settings = short_run(
        max_steps=12,
        schedule_formula="base_lr * (1 - progress) ** 2",
        validation="none",
        rank=64,  # large enough matrices for optimizer states of eight bits
        layers="0",
        **CELLS[cell],
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(checkpoint, eight_songs, whole, settings, stop_after(5)).summary.step == 5
    stopped = train(checkpoint, eight_songs, parts, settings, stop_after(2))
    assert stopped.stopped and stopped.summary.state == "stopped" and stopped.summary.step == 2
    train(checkpoint, eight_songs, parts, settings, stop_after(5), resume=parts)
    assert_same_files(whole / "final", parts / "final")
    assert_same_files(whole / "checkpoints/step_000005", parts / "checkpoints/step_000005")
    assert course(whole) == course(parts) and len(course(whole)) == 5
    if settings.optimizer == "adamw8bit":
        state = load_file(whole / "checkpoints/step_000005/optimizer.safetensors")
        assert any(tensor.dtype == torch.uint8 and tensor.numel() >= 4096 for tensor in state.values())
