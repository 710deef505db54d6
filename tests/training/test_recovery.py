"""Runs in trouble: steps that are no numbers, a card that fails, two runs in one folder, a clock set back."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch
from hand_made import MakeStore, short_run
from safetensors.torch import load_file

from acestep.cli import main
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.settings import PreviewSettings
from acestep.training.checkpoints import LoopState, list_checkpoints
from acestep.training.forward import FlowModel
from acestep.training.recovery import EXPLODED, is_exploded, note_usual
from acestep.training.runs import RunFolder, summarise
from acestep.training.train import CHANGEABLE_ON_RESUME, train


def spike(step: int, factor: str) -> dict[str, object]:
    """Settings of a run whose rate is far too high in one step only."""
    formula = f"base_lr * (1 + {factor} * max(0, 1 - abs(step - {step})))"
    return {"schedule": "formula", "schedule_formula": formula, "warmup_steps": 0, "validation": "none"}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}/{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("kind", [{}, {"ema_decay": 0.9}])
def test_a_run_goes_back_to_its_last_good_state(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict
) -> None:
    settings = short_run(max_steps=70, nan_limit=4, save_every_steps=1, keep_last=0, **spike(55, "1e12"), **kind)
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    for path in list_checkpoints(run.checkpoints):
        assert all(value.isfinite().all() for value in tensors_of(path).values())
    (back,) = run.events("rollback")
    assert back["to_step"] == 50 and 56 < back["step"] < 64
    there, then = (tensors_of(run.checkpoints / f"step_{step:06d}") for step in (back["step"], back["to_step"]))
    assert there.keys() == then.keys() and all(torch.equal(there[key], then[key]) for key in then)
    after = [event["loss"] for event in run.events("step") if event["step"] > back["step"]]
    assert len(after) == 70 - back["step"] and max(after) < 5


def test_a_resumed_run_goes_back_as_well(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    from test_training_run import assert_same_weights, stop_after

    store = make_store()
    settings = short_run(max_steps=66, nan_limit=4, save_every_steps=50, **spike(55, "1e12"))
    train(checkpoint, store, tmp_path / "whole", settings, Job())
    train(checkpoint, store, tmp_path / "parts", settings, stop_after(50))
    train(checkpoint, store, tmp_path / "parts", settings, Job(), resume=tmp_path / "parts")
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "parts" / "final")


def test_a_run_stopped_while_steps_fail_keeps_a_state_to_go_on_from(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Weights that give no numbers are no checkpoint: a resumed run could only fail on."""
    from test_training_run import stop_after

    store, out = make_store(), tmp_path / "run"
    settings = short_run(max_steps=75, nan_limit=30, save_every_steps=1, keep_last=0, **spike(55, "1e12"))
    run = train(checkpoint, store, out, settings, stop_after(64)).run
    (back,) = run.events("rollback")
    assert (back["step"], back["to_step"]) == (64, 50)
    kept = [int(path.name[5:]) for path in list_checkpoints(run.checkpoints)]
    assert kept[-1] == 64 and max(kept[:-1]) < 60, "none was written while steps failed"
    there, then = (tensors_of(run.checkpoints / f"step_{step:06d}") for step in (64, 50))
    assert all(torch.equal(there[key], then[key]) for key in then)
    train(checkpoint, store, out, settings, Job(), resume=out)
    after = [event["loss"] for event in run.events("step") if event["step"] > 64]
    assert len(after) == 11 and max(after) < 5


def test_weights_that_overflow_are_never_saved(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    settings = short_run(max_steps=8, save_every_steps=5, keep_last=0, **spike(4, "1e40"))
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    (back,) = run.events("rollback")
    assert (back["step"], back["to_step"]) == (5, 0) and "infinite" in back["reason"]
    for path in [*list_checkpoints(run.checkpoints), run.final]:
        assert all(value.abs().max() < 1e3 for value in tensors_of(path).values())


def test_far_too_high_a_rate_ends_in_one_sentence_with_an_adapter_that_loads(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = short_run(max_steps=300, nan_limit=3, learning_rate=1e3, schedule="constant", validate_every=5)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    run = tmp_path / "run"
    paths = ["--model", str(checkpoint.dit), "--tensors", str(make_store().folder), "--out", str(run)]
    assert main(["train", *paths, "--config", str(config), "--json"]) == 1
    said = capsys.readouterr()
    error = json.loads(said.out)
    assert "3 steps in a row" in error["error"] and "after going back 3 times" in error["error"]
    assert error["fix"].startswith("Lower the learning rate, which is 1e+03") and "Traceback" not in said.err
    assert summarise(RunFolder.open(run)).state == "failed"
    assert main(["check", str(run / "final")]) == 0
    for path in (run / "final", *list_checkpoints(run / "checkpoints")):
        assert all(value.isfinite().all() for value in tensors_of(path).values())
    step = summarise(RunFolder.open(run)).step
    assert main(["train", "--resume", str(run)]) == 1  # it goes on, and ends the same way
    assert "Lower the learning rate" in capsys.readouterr().err
    assert summarise(RunFolder.open(run)).step > step


def test_a_loss_that_explodes_is_told_and_no_more() -> None:
    state = LoopState()
    for loss in (1.0, 0.5, 1.5):
        assert not is_exploded(state, loss)
        note_usual(state, loss)
    assert state.usual_loss == pytest.approx(1.0)
    assert is_exploded(state, 1.01 * EXPLODED) and not is_exploded(state, 0.99 * EXPLODED)


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: device-side assert"), RuntimeError("CUDA error: unspecified failure")]
)
def test_a_card_that_fails_leaves_a_run_to_go_on_with(
    make_store: MakeStore,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    from test_training_run import assert_same_weights

    store, settings = make_store(), short_run(save_every_steps=2, validation="none")
    train(checkpoint, store, tmp_path / "whole", settings, Job())
    calls, real = itertools.count(1), FlowModel.item_losses

    def lost(self: FlowModel, *arguments: object) -> torch.Tensor:
        if next(calls) == 6:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(FlowModel, "item_losses", lost)
    with pytest.raises(UserError, match=r"card stopped working at step 5.*step 4 is kept: acestep train --resume"):
        train(checkpoint, store, tmp_path / "run", settings, Job())
    run = RunFolder.open(tmp_path / "run")
    end = list(run.events("end"))[-1]
    assert end["state"] == "failed" and "Traceback" in end["reason"] and "CUDA error" in end["reason"]
    train(checkpoint, store, tmp_path / "run", settings, Job(), resume=tmp_path / "run")
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "run" / "final")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("on purpose"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:131] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "python"],
)
def test_memory_that_runs_out_is_a_sentence(
    make_store: MakeStore,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def too_much(*_: object) -> None:
        raise error

    monkeypatch.setattr(FlowModel, "__init__", too_much)
    with pytest.raises(UserError, match=r"memory ran out at step 0.*--gradient-checkpointing"):
        train(checkpoint, make_store(), tmp_path / "run", short_run(validation="none"), Job())


def test_a_run_without_a_checkpoint_is_not_said_to_go_on(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Neither sentence sends the user to the other."""
    store, run = make_store(), tmp_path / "run"
    with pytest.raises(UserError, match="layer 40"):
        train(checkpoint, store, run, short_run(layers="40"), Job())
    with pytest.raises(UserError, match=r"ended before its first checkpoint.*or delete this one"):
        train(checkpoint, store, run, short_run(), Job())
    with pytest.raises(UserError, match=r"no checkpoint to resume from.*begin anew in another folder"):
        train(checkpoint, store, run, short_run(), Job(), resume=run)


def test_a_stop_before_the_first_step_leaves_no_adapter_that_learnt_nothing(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    job = Job()
    job.request_stop()
    with pytest.raises(Stopped):
        train(checkpoint, make_store(), tmp_path / "run", short_run(tensorboard=True), job)
    assert not (tmp_path / "run").exists()


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to rename a folder of which another program has a file open."""
    real = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "step_000001":
            raise PermissionError(13, "Access is denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    settings = short_run(max_steps=4, save_every_steps=1, keep_last=2, validation="none")
    done = train(checkpoint, make_store(), tmp_path / "run", settings, Job())
    assert done.summary.state == "finished"
    assert [path.name for path in list_checkpoints(done.run.checkpoints)][-2:] == ["step_000003", "step_000004"]
    said = [event["text"] for event in done.run.events("warning")]
    assert said and all("old checkpoint cannot be removed (Access is denied)" in text for text in said)


def test_of_many_runs_into_one_folder_one_begins(tmp_path: Path) -> None:
    together, begun, refused = threading.Barrier(8), [], []

    def begin(number: int) -> None:
        together.wait()
        try:
            begun.append(RunFolder.create(tmp_path / "run", {"number": number}))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 1 and len(refused) == 7
    assert json.loads((tmp_path / "run" / "run.json").read_text())["number"] == begun[0].record["number"]
    with pytest.raises(UserError, match="Another process is training in"):
        RunFolder.open(tmp_path / "run").claim()
    begun[0].release()
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(tmp_path / "run", {})


OTHER_VALUES = {
    "compile": "off",
    "devices": 1,
    "device": "cpu",
    "early_stop_patience": 7,
    "epochs": 9,
    "gradient_checkpointing": 1.0,
    "keep_last": 1,
    "log_every": 1,
    "max_steps": 5,
    "on_out_of_memory": "stop",
    "save_every_epochs": 1,
    "save_every_steps": 1,
    "tensorboard": True,
}


def test_every_setting_that_may_change_takes_effect_and_is_recorded(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from test_training_run import stop_after

    assert set(OTHER_VALUES) == CHANGEABLE_ON_RESUME - set(PreviewSettings.model_fields)
    store, run, said = make_store(), tmp_path / "run", []
    train(checkpoint, store, run, short_run(max_steps=4, log_every=100, device="auto"), stop_after(2))
    job = Job(lambda kind, what: said.append(what) if kind == "say" else None)
    settings = short_run(**OTHER_VALUES)
    done = train(checkpoint, store, run, settings, job, resume=run)
    (event,) = done.run.events("resume")
    before = {**short_run(max_steps=4, log_every=100).model_dump(), "device": "auto"}
    changed = {name: [before[name], value] for name, value in OTHER_VALUES.items() if before[name] != value}
    assert event["changed"] == changed
    assert (event["total_steps"], done.summary.step) == (5, 5)  # max_steps
    assert [path.name for path in list_checkpoints(done.run.checkpoints)] == ["step_000005"]  # keep_last
    saved = [item["step"] for item in done.run.events("checkpoint")]
    assert saved == [2, 3, 4, 5]  # save_every_steps
    assert any(str(line).startswith("step 4,") for line in said)  # log_every
    assert list((run / "tensorboard").glob("events*"))


def test_a_checkpoint_of_another_size_is_named(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    for name, rank in (("small", 4), ("large", 8)):
        train(checkpoint, store, tmp_path / name, short_run(rank=rank, max_steps=2), Job())
    (mine,), (other,) = (list_checkpoints(tmp_path / name / "checkpoints") for name in ("small", "large"))
    for file in other.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"step_000002.*does not fit"):
        train(checkpoint, store, tmp_path / "small", short_run(max_steps=4), Job(), resume=tmp_path / "small")


def test_a_clock_that_goes_backwards_harms_nothing(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    ticks = itertools.count(1_000_000, -7)
    left: list[float] = []

    def listen(kind: str, what: object) -> None:
        if kind in ("progress", "end"):
            left.extend([what.remaining_s(next(ticks)) or 0.0, what.elapsed_s(next(ticks))])  # type: ignore[attr-defined]

    done = train(checkpoint, make_store(), tmp_path / "run", short_run(max_steps=15), Job(listen, lambda: next(ticks)))
    assert done.summary.step == 15 and min(left) >= 0
