"""What a run is predicted to cost, and that predicting leaves no trace in it."""

from __future__ import annotations

import copy
import mmap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hand_made import MakeStore, Shape, short_run

from acestep.core.device import memory_in_use
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.settings import TrainSettings
from acestep.training import forecast as forecasting
from acestep.training.checkpoints import list_checkpoints
from acestep.training.data import load_data
from acestep.training.estimate import estimate, unrecorded_session
from acestep.training.forecast import (
    Memory,
    PeakMemory,
    available_memory,
    forecast,
    largest_micro_batch,
    left_untouched,
    remedies,
)
from acestep.training.loop import Session, optimizer_step, steps_of
from acestep.training.train import train
from acestep.training.validation import Validation

Open = Callable[..., Session]


@pytest.fixture
def open_session(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> Open:
    """A session that has not begun, as a run opens it."""

    def open_it(shapes: list[Shape] | None = None, **changes: object) -> Session:
        settings = short_run(device="cpu", precision="fp32", **changes)
        store = make_store(shapes) if shapes else make_store()
        return unrecorded_session(checkpoint, store, settings, tmp_path / "log", Job())[0]

    return open_it


def flat(value: object) -> list[object]:
    """Everything in nested containers, tensors as lists."""
    if isinstance(value, dict):
        return [item for key, inner in value.items() for item in (key, *flat(inner))]
    if isinstance(value, list | tuple):
        return [item for inner in value for item in flat(inner)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"optimizer": "adamw8bit"},
        {"optimizer": "prodigy"},
        {"optimizer": "schedule_free"},
        {"optimizer": "adafactor", "adapter": "lokr", "gradient_accumulation": 2},
    ],
)
def test_a_forecast_leaves_no_trace(open_session: Open, changes: dict) -> None:
    session, other = open_session(**changes), open_session(**changes)
    optimizer = copy.deepcopy(session.optimizer.state_dict())
    weights = [parameter.detach().clone() for parameter in session.adapter.parameters()]
    generator = torch.get_rng_state()
    found = forecast(session, Path("lora_output"), Job())
    assert found.step_s > 0 and found.memory.peak > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert flat(session.optimizer.state_dict()) == flat(optimizer)
    assert session.state == other.state
    for parameter, value in zip(session.adapter.parameters(), weights, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None
    for one in (session, other):  # and what follows is what would have followed
        one.model.transformer.train()
        for step in range(3):
            optimizer_step(one, *steps_of(one, step))
            one.state.step += 1
    with session.averaging.in_use(), other.averaging.in_use():
        pairs = zip(session.adapter.parameters(), other.adapter.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_trace_is_removed_after_an_error_and_from_a_run_under_way(open_session: Open) -> None:
    session = open_session(optimizer="adamw", ema_decay=0.9)
    session.model.transformer.train()
    for step in range(2):
        optimizer_step(session, *steps_of(session, step))
        session.state.step += 1
    with session.averaging.in_use():
        averaged = [parameter.detach().clone() for parameter in session.adapter.parameters()]
    before = flat(copy.deepcopy(session.optimizer.state_dict()))
    with pytest.raises(RuntimeError, match="on purpose"), left_untouched(session):
        optimizer_step(session, *steps_of(session, 2))
        assert flat(session.optimizer.state_dict()) != before
        raise RuntimeError("on purpose")
    assert flat(session.optimizer.state_dict()) == before
    with session.averaging.in_use():
        pairs = zip(session.adapter.parameters(), averaged, strict=True)
        assert all(torch.equal(parameter, value) for parameter, value in pairs)


def test_steps_validations_and_disk_are_those_of_the_run(
    open_session: Open, make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    changes = {"max_steps": 7, "validate_every": 2, "save_every_steps": 2, "keep_last": 3, "ema_decay": 0.9}
    found = forecast(open_session(**changes), tmp_path / "runs", Job())
    settings: TrainSettings = short_run(device="cpu", precision="fp32", **changes)
    run = train(checkpoint, make_store(name="again"), tmp_path / "run", settings, Job()).run
    assert found.steps == len(list(run.events("step"))) == 7
    # 0, 2, 4 and 6 as they fall due, and once more at the end
    assert found.validations == len(list(run.events("validation")))
    kept = list_checkpoints(run.checkpoints)
    assert found.checkpoints_kept == len(kept) == 3
    size = sum(file.stat().st_size for file in kept[-1].iterdir())
    assert found.checkpoint_bytes == pytest.approx(size, rel=0.05)
    on_disk = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file() and file.suffix != ".jsonl")
    assert on_disk <= found.disk_bytes <= on_disk + 2 * size
    assert found.seconds == found.steps * found.step_s + found.validations * found.validation_s
    assert found.to_dict()["memory"]["verdict"] in ("fits", "tight", "does not fit")


def test_the_largest_micro_batch_counts_all_its_windows(make_store: MakeStore) -> None:
    settings = short_run(batch_size=4, max_latent_length=0, validation="none")
    shapes = [Shape(400), Shape(300, text=30), Shape(300, text=50, repeat=2), Shape(100)]
    batch = largest_micro_batch(load_data(make_store(shapes), settings), settings)
    assert [sample.song.frames for sample in batch] == [300, 300, 300]
    assert batch[0].song.condition.shape[0] > batch[2].song.condition.shape[0]
    assert [sample.position for sample in batch] == [0, 1, 2]
    alone = largest_micro_batch(load_data(make_store(shapes, "one"), settings), settings.changed(batch_size=1))
    assert [sample.song.frames for sample in alone] == [400]


def test_running_out_of_memory_is_a_verdict(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(batch_size=2)

    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("on purpose")

    monkeypatch.setattr(forecasting, "optimizer_step", too_much)
    found = forecast(session, Path("lora_output"), Job())
    assert found.memory.verdict == "does not fit"
    assert (found.memory.peak, found.seconds, found.disk_bytes) == (None, None, None)
    assert found.remedies[0].startswith("--gradient-checkpointing")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("on purpose"), RuntimeError("MPS backend out of memory (…)")])
def test_a_validation_that_does_not_fit_is_a_verdict_too(
    open_session: Open, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session = open_session(batch_size=1)

    def too_much(*_: object) -> None:
        raise error

    monkeypatch.setattr(Validation, "_window_losses", too_much)
    assert forecast(session, Path("lora_output"), Job()).memory.verdict == "does not fit"


MEMORY = Memory(peak=70, available=100, model=20, adapter=5, optimizer=5)


@pytest.mark.parametrize(
    ("peak", "verdict"), [(79, "fits"), (80, "tight"), (94, "tight"), (95, "does not fit"), (None, "does not fit")]
)
def test_the_verdict_goes_by_the_share_of_free_memory(peak: int | None, verdict: str) -> None:
    assert replace(MEMORY, peak=peak).verdict == verdict


def test_remedies_begin_with_the_largest_part() -> None:
    settings = TrainSettings(batch_size=2, rank=64)
    assert MEMORY.activations == 40
    named = remedies(MEMORY, settings, "cuda")
    assert [words.split()[0] for words in named] == [
        *("--gradient-checkpointing", "--batch-size", "--max-latent-length"),
        *("--base-weights", "--optimizer", "--rank"),
    ]
    assert "--batch-size 1 --gradient-accumulation 8" in named
    heavy = Memory(peak=90, available=100, model=20, adapter=30, optimizer=30)
    assert remedies(heavy, settings, "cuda")[0] == "--optimizer adamw8bit"
    small = settings.changed(gradient_checkpointing=1, batch_size=1, max_latent_length=400, optimizer="adamw8bit")
    assert remedies(MEMORY, small, "cuda") == ("--base-weights int8", "--rank 32")
    assert remedies(MEMORY, small.changed(base_weights="int8"), "mps") == ("--rank 32",)


def test_the_peak_of_this_program_is_seen() -> None:
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as after:
        block = mmap.mmap(-1, 256 << 20)  # pages of its own, which no earlier test has left behind
        block.write(b"x" * len(block))
    assert after.peak >= before.peak + (200 << 20)
    block.close()


def test_the_memory_of_a_mac_is_what_metal_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resident size of a program knows nothing of it: every run would seem to fit."""
    gib = 1 << 30
    held = {"current": 3 * gib, "driver": 5 * gib}
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: held["current"])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held["driver"])
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * gib)
    mac = torch.device("mps")
    for free, available in ((4 * gib, 9 * gib), (20 * gib, 12 * gib)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert available_memory(mac) == available
    with PeakMemory(mac) as memory:
        held["current"] = 7 * gib
        time.sleep(0.2)
        held["current"] = 3 * gib
    assert memory.peak == 7 * gib
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert memory_in_use() == (5 * gib, "graphics memory")


def test_an_estimate_writes_nothing(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    before = sorted(tmp_path.rglob("*"))
    settings = short_run(device="cpu", precision="fp32", adapter="lokr", train_mlp=True)
    found = estimate(checkpoint, store, tmp_path / "out", settings, 2, Job())
    assert sorted(tmp_path.rglob("*")) == before
    assert len(found.adapted) == len(found.sensitivity.modules)
    lora = estimate(checkpoint, store, tmp_path / "out", settings.changed(adapter="lora"), 2, Job())
    assert lora.sensitivity == found.sensitivity  # the base is measured, whatever adapter was on it
