"""Whole runs on the tiny model: learning, keeping, resuming, refusing."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import forked
import pytest
import torch
from hand_made import MakeStore, Shape, short_run
from safetensors.torch import load_file, save_file

from acestep.adapters import attach, read_adapter_info
from acestep.core.errors import UserError
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.settings import TrainSettings
from acestep.training.checkpoints import list_checkpoints
from acestep.training.data import EpochOrder, Flow, draw_batch, load_data
from acestep.training.estimate import unrecorded_session
from acestep.training.forward import FlowModel
from acestep.training.history import RunHistory
from acestep.training.loop import save
from acestep.training.opening import take_up
from acestep.training.runs import RunFolder, compare, summarise
from acestep.training.train import train

OPTIMIZERS = [
    pytest.param({"optimizer": "adamw8bit"}, id="adamw8bit"),
    pytest.param({"optimizer": "adafactor", "schedule": "cosine_restarts"}, id="adafactor"),
    pytest.param({"optimizer": "prodigy", "schedule": "constant_with_warmup"}, id="prodigy"),
    pytest.param({"optimizer": "schedule_free", "schedule": "constant"}, id="schedule-free"),
    pytest.param({"ema_decay": 0.9, "schedule": "linear"}, id="ema"),
    pytest.param({"stratified_timesteps": True, "loss_weighting": "min_snr"}, id="stratified"),
]


def stop_after(steps: int) -> Job:
    """A job that is asked to stop while the given step goes on."""
    job = Job()

    def listen(kind: str, what: object) -> None:
        if kind == "progress" and getattr(what, "name", "") == "train" and what.done - what.already == steps:
            job.request_stop()

    job._listener = listen
    return job


def weights(folder: Path) -> dict[str, torch.Tensor]:
    others = ("optimizer.safetensors", "training_weights.safetensors")
    return load_file(next(path for path in folder.glob("*.safetensors") if path.name not in others))


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in read_events(run / "events.jsonl", "step")}


def test_a_run_learns_and_leaves_everything_behind(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = short_run(max_steps=40, validate_every=10, save_every_steps=10, keep_last=2, tensorboard=True)
    outcome = train(checkpoint, make_store(), tmp_path / "run", settings, Job())
    summary = outcome.summary
    assert summary.best_validation < 0.97 * summary.first_validation
    assert summary.step == summary.total_steps == 40
    assert [path.name for path in list_checkpoints(outcome.run.checkpoints)] == ["step_000030", "step_000040"]
    assert list((outcome.run.path / "tensorboard").glob("events.out.tfevents.*"))
    info = read_adapter_info(outcome.adapter)
    assert (info.trigger.word, info.trigger.position) == ("handstyle", "prepend")
    note = json.loads((outcome.adapter / "training.json").read_text())
    assert note["step"] == summary.best_step and note["reason"]
    record = json.loads((outcome.run.path / "run.json").read_text())
    assert record["settings"] == settings.model_dump(mode="json")
    assert record["versions"]["torch"] and record["model"]["fingerprint"]
    kinds = [event["kind"] for event in outcome.run.events()]
    assert kinds[0] == "start" and kinds[-1] == "end" and kinds.count("step") == 40


def test_two_stops_equal_an_uninterrupted_run(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Kinds of adapters and optimizers are resumed in test_matrix.py."""
    store = make_store()
    settings = short_run(max_steps=9, validate_every=2, gradient_accumulation=2, batch_size=1)
    whole = train(checkpoint, store, tmp_path / "whole", settings, Job())
    stopped = train(checkpoint, store, tmp_path / "parts", settings, stop_after(4))
    assert stopped.stopped and stopped.summary.state == "stopped" and stopped.summary.step == 4
    assert stopped.adapter.is_dir()
    again = train(checkpoint, store, tmp_path / "parts", settings, stop_after(3), resume=tmp_path / "parts")
    assert again.summary.step == 7
    done = train(checkpoint, store, tmp_path / "parts", settings, Job(), resume=tmp_path / "parts")
    assert not done.stopped
    for part in ("final", "best", "checkpoints/step_000009"):
        assert_same_weights(tmp_path / "whole" / part, tmp_path / "parts" / part)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert done.summary.best_validation == whole.summary.best_validation
    moments = [
        load_file(tmp_path / name / "checkpoints/step_000009/optimizer.safetensors") for name in ("whole", "parts")
    ]
    assert all(torch.equal(moments[0][key], moments[1][key]) for key in moments[0])


@pytest.mark.parametrize("validation", ["songs", "none"])
def test_a_run_that_goes_on_from_an_earlier_checkpoint_knows_what_best_holds(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, validation: str
) -> None:
    """best/ is of a later step than the checkpoint: final/ says so, and nothing worse takes its place."""
    settings = short_run(
        max_steps=24, validate_every=2, save_every_steps=4, keep_last=0, learning_rate=5e-3, validation=validation
    )
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    best, step = weights(run.best), json.loads((run.best / "training.json").read_text())["step"]
    kinds = ("validation", "smoothed_loss")
    (loss,) = {event["loss"] for event in run.events() if event["kind"] in kinds and event["step"] == step}
    assert step > 20
    early = run.checkpoints / "step_000016"
    assert json.loads((early / "state.json").read_text())["loop"]["best_step"] != step
    done = train(checkpoint, make_store(), run.path, settings.changed(max_steps=18), Job(), resume=early)
    note = json.loads((done.adapter / "training.json").read_text())
    assert note["step"] == step and f"{loss:.5f} at step {step}" in note["reason"]
    assert all(torch.equal(value, best[name]) for name, value in weights(done.adapter).items())


def test_checkpoints_of_a_way_given_up_do_not_outlive_the_new_one(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Resumed before them, stopped, and resumed again as the run's words say: by its folder."""
    settings = short_run(max_steps=20, save_every_steps=4, keep_last=3, validation="none")
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step_000012", "step_000016", "step_000020"]
    other_way = settings.changed(max_steps=14, save_every_steps=1, keep_last=1)
    train(checkpoint, make_store(), run.path, other_way, Job(), resume=run.checkpoints / "step_000012")
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step_000014"]
    warnings = [event["text"] for event in run.events("warning")]
    assert any("step_000016, step_000020" in text for text in warnings)
    done = train(checkpoint, make_store(), run.path, other_way.changed(max_steps=15), Job(), resume=run.path)
    assert done.summary.step == 15


def test_the_loss_scale_of_fp16_comes_back_with_a_checkpoint(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Begun anew it would be far too large, and the steps that bring it down again would be lost."""
    scales = []
    for number, scale in enumerate((64.0, 2.0**16)):
        settings = short_run(device="cpu")
        session, _ = unrecorded_session(checkpoint, make_store(), settings, tmp_path / "run", Job())
        session.processes.fabric.strategy.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        if number:
            take_up(session, tmp_path / "run" / "checkpoints" / "step_000000")
        else:
            save(session)
        scales.append(session.processes.scaler.get_scale())
    assert scales == [64.0, 64.0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_learns(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict) -> None:
    settings = short_run(max_steps=60, validate_every=20, learning_rate=5e-3, dropout=0.0, **kind)
    summary = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).summary
    assert summary.best_validation < 0.97 * summary.first_validation


def test_the_average_is_what_is_kept_and_judged(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """EMA recomputed from the trained weights of every step."""
    settings = short_run(max_steps=5, ema_decay=0.5, save_every_steps=1, keep_last=0, validation="none")
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    trained = [load_file(path / "training_weights.safetensors") for path in list_checkpoints(run.checkpoints)]
    name = next(key for key in trained[0] if "lora_A" in key)
    torch.manual_seed(settings.seed)
    adapter = attach(load_transformer(checkpoint, torch.float32, torch.device("cpu")), settings)
    shadow = adapter.tensors()[name].clone()
    for step, weights_then in enumerate(trained, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * weights_then[name]
        torch.testing.assert_close(weights(run.checkpoints / f"step_{step:06d}")[name], shadow, rtol=1e-5, atol=1e-7)


def command(store: Path, checkpoint: Checkpoint, out: Path, settings: TrainSettings) -> list[str]:
    config = out.with_suffix(".json")
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    model = ["--model", str(checkpoint.dit), "--tensors", str(store), "--out", str(out), "--config", str(config)]
    return [sys.executable, "-m", "acestep", "train", *model]


def interrupt(arguments: list[str], step: int, number: int) -> int:
    """Start a run, send it a signal once it reports the step, and return its exit code."""
    process = forked.start(arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"step {step},"):
            process.send_signal(number)
            break
    process.stderr.read()
    return process.wait()


def test_resume_after_kill_equals_an_uninterrupted_run(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import random

    store = make_store()
    settings = short_run(max_steps=60, save_every_steps=4, validate_every=5, log_every=1)
    whole = train(checkpoint, store, tmp_path / "whole", settings, Job())
    killed_at = random.Random().randrange(6, 50)
    arguments = command(store.folder, checkpoint, tmp_path / "killed", settings)
    assert interrupt(arguments, killed_at, signal.SIGKILL) == -signal.SIGKILL, f"killed at step {killed_at}"
    assert summarise(RunFolder.open(tmp_path / "killed")).state == "interrupted"
    resumed = forked.run([sys.executable, "-m", "acestep", "train", "--resume", str(tmp_path / "killed"), "--json"])
    assert json.loads(resumed.stdout)["best_validation"] == whole.summary.best_validation, f"killed at {killed_at}"
    assert_same_weights(tmp_path / "whole" / "final", tmp_path / "killed" / "final")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_sigterm_stops_at_a_step_with_everything_kept(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = short_run(max_steps=2000, log_every=1)
    arguments = command(make_store().folder, checkpoint, tmp_path / "run", settings)
    assert interrupt(arguments, 3, signal.SIGTERM) == 130
    summary = summarise(RunFolder.open(tmp_path / "run"))
    assert summary.state == "stopped" and 3 <= summary.step < 2000
    (kept,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert int(kept.name.removeprefix("step_")) == summary.step
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_a_batch_of_n_is_n_batches_of_one(make_store: MakeStore, checkpoint: Checkpoint, kind: str) -> None:
    settings = short_run(validation="none", batch_size=8, adapter=kind, dropout=0.0, condition_dropout=0.3)
    data = load_data(make_store(), settings)
    transformer = load_transformer(checkpoint, torch.float32, torch.device("cpu"))
    adapter = attach(transformer, settings)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model = FlowModel(
        transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), torch.device("cpu")
    )
    (step,) = EpochOrder(data, settings).steps(0)
    lengths = {sample.song.condition.shape[0] for sample in step[0]}
    assert len(step[0]) == 8 and len(lengths) > 1  # conditions of several lengths stand in one batch

    def judge(batches: list) -> tuple[list[float], list[torch.Tensor]]:
        for parameter in adapter.parameters():
            parameter.grad = None
        found: list[float] = []
        for samples in batches:
            items = model.item_losses(draw_batch(samples, 0, data, settings, Flow(-0.4, 1.0)), 0.3)
            (items.sum() / 8).backward()
            found += items.tolist()
        return found, [parameter.grad.clone() for parameter in adapter.parameters()]

    together, gradient = judge([step[0]])
    model.round_conditions_up(64)
    padded, gradient_of_padded = judge([step[0]])
    model.round_conditions_up(1)
    alone, gradients = judge([[sample] for sample in step[0]])
    assert together == pytest.approx(alone, rel=1e-5) and padded == pytest.approx(alone, rel=1e-5)
    for one, other, third in zip(gradient, gradients, gradient_of_padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(third, other, rtol=1e-4, atol=1e-7)


def test_the_reported_loss_is_the_mean_over_every_sample_of_a_step(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Seven songs in batches of two, four batches a step: the last batch of the step holds one song only."""
    store = make_store([Shape(80)] * 7)
    settings = short_run(validation="none", gradient_accumulation=4, max_steps=1, dropout=0.0, condition_dropout=0.0)
    train(checkpoint, store, tmp_path / "run", settings, Job())
    transformer = load_transformer(checkpoint, torch.float32, torch.device("cpu"))
    model = FlowModel(
        transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), torch.device("cpu")
    )
    data = load_data(store, settings)
    flow = Flow(checkpoint.config.timestep_mu, checkpoint.config.timestep_sigma)
    (step,) = EpochOrder(data, settings).steps(0)
    assert [len(batch) for batch in step] == [2, 2, 2, 1]
    singles = [
        float(model.item_losses(draw_batch([sample], 0, data, settings, flow), 0.0))
        for batch in step
        for sample in batch
    ]
    assert losses(tmp_path / "run")[1] == pytest.approx(sum(singles) / 7, rel=1e-5)


def test_validation_does_not_depend_on_the_runs_seed_nor_disturb_it(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = make_store()
    runs = {}
    for name, changes in {"often": {"validate_every": 1}, "seldom": {"validate_every": 50}}.items():
        train(checkpoint, store, tmp_path / name, short_run(**changes), Job())
        runs[name] = tmp_path / name
    assert losses(runs["often"]) == losses(runs["seldom"])


def test_gradient_checkpointing_changes_nothing(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    for name in (False, True):
        settings = short_run(gradient_checkpointing=name, batch_size=4, dropout=0.0)
        train(checkpoint, store, tmp_path / str(name), settings, Job())
    found, expected = losses(tmp_path / "True"), losses(tmp_path / "False")
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4)


def test_a_folder_that_holds_a_run_is_refused(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    train(checkpoint, store, tmp_path / "run", short_run(max_steps=1), Job())
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(checkpoint, store, tmp_path / "run", short_run(max_steps=1), Job())
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_resume_refuses_another_run(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store, run = make_store(), tmp_path / "run"
    train(checkpoint, store, run, short_run(), stop_after(2))
    with pytest.raises(UserError, match=r"cannot change rank"):
        train(checkpoint, store, run, short_run(rank=8), Job(), resume=run)
    with pytest.raises(UserError, match=r"tensor folder .* is not the one"):
        train(checkpoint, make_store([Shape(70)] * 8, name="other"), run, short_run(), Job(), resume=run)
    with pytest.raises(UserError, match=r"is not a run folder|does not exist|holds no checkpoint"):
        train(checkpoint, store, run, short_run(), Job(), resume=tmp_path)
    longer = train(checkpoint, store, run, short_run(max_steps=8), Job(), resume=run)
    assert (longer.summary.step, longer.summary.total_steps) == (8, 8)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, file: str
) -> None:
    store, run = make_store(), tmp_path / "run"
    train(checkpoint, store, run, short_run(), stop_after(2))
    (kept,) = list_checkpoints(run / "checkpoints")
    data = (kept / file).read_bytes()
    (kept / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=file.split(".")[0]):
        train(checkpoint, store, run, short_run(), Job(), resume=run)


def test_tensors_of_another_model_are_refused(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="condition encoder"):
        train(checkpoint, make_store(condition_fingerprint="0" * 32), tmp_path / "run", short_run(), Job())
    assert not (tmp_path / "run").exists()


def test_a_model_that_gives_nan_ends_with_a_diagnosis(
    make_store: MakeStore, demo_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_checkpoint, tmp_path / "broken")
    file = tmp_path / "broken" / "acestep-v15-demo" / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.norm_out.weight"].fill_(float("nan"))
    save_file(tensors, file)
    broken = resolve_checkpoint(str(file.parent))
    with pytest.raises(UserError, match=r"10 steps in a row.*Lower the learning rate"):
        train(broken, make_store(), tmp_path / "run", short_run(max_steps=50, validation="none"), Job())
    run = RunFolder.open(tmp_path / "run")
    assert summarise(run).state == "failed"
    assert all(torch.isfinite(tensor).all() for tensor in weights(list_checkpoints(run.checkpoints)[-1]).values())
    assert len(list(run.events("warning"))) == 10


def test_runs_are_listed_and_compared(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    for name, rank in (("a", 2), ("b", 4)):
        train(checkpoint, store, tmp_path / "runs" / name, short_run(rank=rank, max_steps=2), Job())
    (second, first), problems = RunHistory().read(tmp_path / "runs")
    assert (first.name, second.name, first.state, problems) == ("a", "b", "finished", [])
    assert compare(first, second) == {"rank": (2, 4)}
