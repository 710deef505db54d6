"""What saves memory changes as little as it says, and a run that runs out of memory goes on with less."""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from diffusers import AceStepConditionEncoder, AutoencoderOobleck
from diffusers.models.transformers.ace_step_transformer import AceStepTransformerBlock
from hand_made import MakeStore, Shape, short_run
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import Qwen3Model

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.model.quantising import QuantisedLinear
from acestep.settings import TrainSettings
from acestep.training.checkpoints import list_checkpoints
from acestep.training.estimate import estimate, unrecorded_session
from acestep.training.forward import FlowModel, recompute_layers
from acestep.training.loop import accumulate, steps_of
from acestep.training.opening import take_up
from acestep.training.runs import RunFolder
from acestep.training.train import train

KINDS = [
    pytest.param({"adapter": "lora"}, id="lora"),
    pytest.param({"adapter": "lora", "dora": True}, id="dora"),
    pytest.param({"adapter": "lokr", "lokr_dropout": 0.1}, id="lokr"),
    pytest.param({"adapter": "loha", "loha_dim": 4}, id="loha"),
    pytest.param({"adapter": "oft", "oft_block_size": 8}, id="oft"),
    pytest.param({"adapter": "oft", "oft_block_size": 8, "oft_constrained": True, "oft_eps": 0.5}, id="coft"),
]
LENGTHS = [Shape(120, head=4 + n % 3) for n in range(8)]
"""Conditions of three lengths, so that batches have a mask."""

TooLarge = Callable[[torch.nn.Module, torch.Tensor], bool]


@pytest.fixture
def memory() -> Iterator[Callable[[TooLarge], None]]:
    """Lets every block of every model run out of memory where a function of block and output says so."""
    handles = []

    def limit(too_large: TooLarge) -> None:
        def hook(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            if isinstance(module, AceStepTransformerBlock) and too_large(module, output):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        handles.append(register_module_forward_hook(hook))

    yield limit
    for handle in handles:
        handle.remove()


def in_training(windows: int = 1000, tokens: int = 1000) -> TooLarge:
    """Passes with gradients of more windows, or longer ones, do not fit. Two frames are a token."""

    def too_large(_block: torch.nn.Module, output: torch.Tensor) -> bool:
        return torch.is_grad_enabled() and (output.shape[0] > windows or output.shape[1] > tokens)

    return too_large


def losses(run: RunFolder) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def measures(run: RunFolder) -> list[str]:
    return [event["measure"].split(",")[0] for event in run.events("step_down")]


def final(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.final / "adapter_model.safetensors")


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert losses(one) == losses(other)
    assert all(torch.equal(value, final(other)[name]) for name, value in final(one).items())


# layers that are recomputed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_layers_change_no_bit(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict
) -> None:
    store = make_store(LENGTHS)
    found = []
    for share in (0.0, 0.5, 1.0):
        settings = short_run(device="cpu", gradient_checkpointing=share, batch_size=3, train_mlp=True, **kind)
        session, _ = unrecorded_session(checkpoint, store, settings, tmp_path / "log", Job())
        session.model.transformer.train()
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in session.adapter.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        loss, _ = accumulate(session, *steps_of(session, 0))
        found.append([loss, *(parameter.grad for parameter in session.adapter.parameters())])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            if kind.get("oft_constrained"):  # its bound is put on the weights once more, which rounds once more
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
            else:
                assert torch.equal(one, two)


@pytest.mark.parametrize(("share", "recomputed"), [(0, []), (0.3, [0, 1]), (0.5, [0, 1]), (1, [0, 1, 2, 3])])
def test_the_first_layers_are_recomputed(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, share: float, recomputed: list[int]
) -> None:
    settings = short_run(device="cpu", gradient_checkpointing=share)
    session, _ = unrecorded_session(checkpoint, make_store(), settings, tmp_path / "log", Job())
    calls: list[int] = []
    for number, layer in enumerate(session.model.transformer.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    accumulate(session, *steps_of(session, 0))
    assert sorted(calls) == sorted([0, 1, 2, 3, *recomputed])


def test_switches_of_older_files_are_shares() -> None:
    assert TrainSettings.parse({"gradient_checkpointing": True}, "old").gradient_checkpointing == 1
    assert TrainSettings.parse({"gradient_checkpointing": False}, "old").gradient_checkpointing == 0


def test_a_run_of_an_older_program_goes_on(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store()
    settings = short_run(max_steps=2, gradient_checkpointing=1)
    run = train(checkpoint, store, tmp_path / "run", settings, Job()).run
    record = json.loads((run.path / "run.json").read_text())
    record["settings"]["gradient_checkpointing"] = True
    del record["settings"]["base_weights"], record["settings"]["on_out_of_memory"]
    (run.path / "run.json").write_text(json.dumps(record))
    again = train(checkpoint, store, run.path, settings.changed(max_steps=4), Job(), resume=run.path)
    assert again.summary.step == 4


# base weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_on_quantised_weights_learns_resumes_and_exports(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: str
) -> None:
    store = make_store()
    settings = short_run(base_weights=kind, gradient_checkpointing=0.5, max_steps=12, validate_every=6)
    whole = train(checkpoint, store, tmp_path / "whole", settings, Job())
    assert whole.summary.best_validation < whole.summary.first_validation
    train(checkpoint, store, tmp_path / "parts", settings.changed(max_steps=12), at_step(5, Job.request_stop))
    parts = train(checkpoint, store, tmp_path / "parts", settings, Job(), resume=tmp_path / "parts")
    assert_same_run(parts.run, whole.run)
    assert {value.dtype for value in final(whole.run).values()} == {torch.float32}


def test_an_estimate_measures_small_weights_and_gradients_of_whole_ones(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store, found = make_store(), {}
    for kind in ("full", "nf4"):
        settings = short_run(device="cpu", precision="fp32", base_weights=kind)
        found[kind] = estimate(checkpoint, store, tmp_path / "out", settings, 1, Job())
    assert found["nf4"].forecast.memory.model < 0.45 * found["full"].forecast.memory.model
    assert found["nf4"].sensitivity == found["full"].sensitivity


# running out of memory --------------------------------------------------------------------------------------------


def at_step(step: int, act: Callable[[Job], object]) -> Job:
    job = Job()

    def listen(kind: str, what: object) -> None:
        if kind == "progress" and getattr(what, "name", "") == "train" and what.done == step:
            act(job)

    job._listener = listen
    return job


def test_smaller_passes_give_the_same_run(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    store = make_store(LENGTHS)
    settings = short_run(batch_size=4, dropout=0.0, validate_every=2, condition_dropout=0.3)
    plain = train(checkpoint, store, tmp_path / "plain", settings, Job()).run
    models: list[weakref.ref] = []
    most_alive = 0

    def too_large(block: torch.nn.Module, output: torch.Tensor) -> bool:
        nonlocal most_alive
        models.extend([weakref.ref(block)] if all(model() is not block for model in models) else [])
        most_alive = max(most_alive, sum(model() is not None for model in models))
        return in_training(windows=1)(block, output)

    memory(too_large)
    outcome = train(checkpoint, store, tmp_path / "small", settings, Job())
    assert measures(outcome.run) == ["passes of 2 instead of 4 windows", "passes of 1 instead of 2 windows"]
    assert losses(outcome.run) == pytest.approx(losses(plain), rel=1e-4)
    for name, value in final(plain).items():
        torch.testing.assert_close(final(outcome.run)[name], value, rtol=1e-2, atol=1e-4)
    assert most_alive == 4  # the blocks of one model: the one that did not fit is gone before the next is loaded
    assert [event["step"] for event in outcome.run.events("step")] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in outcome.run.events("validation")] == [0, 2, 4, 6]
    said = [event["text"] for event in outcome.run.events("warning")]
    assert "Step 1 ran out of memory on cpu with passes of 4 windows of 2 s each" in said[0]


def test_every_measure_in_turn_and_again_after_a_stop(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    """From the third step on only short windows on small weights fit; a resumed run knows that at once."""
    store = make_store([Shape(800)] * 4)
    settings = short_run(max_latent_length=600, validation="windows", max_steps=5, gradient_accumulation=2)
    tight = False

    def too_large(block: torch.nn.Module, output: torch.Tensor) -> bool:
        quantised = any(isinstance(module, QuantisedLinear) for module in block.modules())
        return tight and torch.is_grad_enabled() and (output.shape[1] > 160 or not quantised)

    def now(_job: Job) -> None:
        nonlocal tight
        tight = True

    memory(too_large)
    run = train(checkpoint, store, tmp_path / "run", settings, at_step(2, now)).run
    expected = [
        "passes of 1 instead of 2 windows",
        "every layer is recomputed in the backward pass",
        "windows of at most 12 s instead of 24 s",
        "windows of at most 10 s instead of 12 s",
        "base weights of 4 bits",
    ]
    assert measures(run) == expected
    assert {event["step"] for event in run.events("step_down")} == {2}
    assert len(losses(run)) == 5 and run.record["settings"]["base_weights"] == "full"
    assert any("max_latent_length" in line and "250" in line for line in (run.final / "README.md").open())

    tight = False
    parts = tmp_path / "parts"
    job = at_step(2, now)
    listen = job._listener
    job._listener = lambda kind, what: (listen(kind, what), getattr(what, "done", 0) == 4 and job.request_stop())
    assert train(checkpoint, store, parts, settings, job).stopped
    resumed = train(checkpoint, store, parts, settings, Job(), resume=parts).run
    assert measures(resumed) == expected
    assert_same_run(resumed, run)


def test_asked_to_stop_it_saves_and_names_what_helps(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    store = make_store(LENGTHS)
    settings = short_run(on_out_of_memory="stop", gradient_checkpointing=0.5)
    plain = train(checkpoint, store, tmp_path / "plain", settings, Job()).run
    tight = False

    def now(_job: Job) -> None:
        nonlocal tight
        tight = True

    memory(lambda block, output: tight and in_training(windows=1)(block, output))
    with pytest.raises(UserError, match=r"Step 4 ran out of .*batch_size 1 with.*gradient_checkpointing 1") as error:
        train(checkpoint, store, tmp_path / "run", settings, at_step(3, now))
    assert len(str(error.value).split(", ")) == 3
    run = RunFolder.open(tmp_path / "run")
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step_000003"] and not measures(run)
    tight = False
    assert_same_run(train(checkpoint, store, run.path, settings, Job(), resume=run.path).run, plain)


def test_with_nothing_left_the_run_ends_saved(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    memory(in_training(windows=0))
    with pytest.raises(UserError, match=r"Step 1 ran out of memory.*optimizer adamw8bit, a smaller adapter"):
        train(checkpoint, make_store(), tmp_path / "run", short_run(gradient_checkpointing=1), Job())
    run = RunFolder.open(tmp_path / "run")
    assert measures(run) == ["passes of 1 instead of 2 windows", "base weights of 4 bits"]
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step_000000"]
    assert list(run.events("end"))[-1]["state"] == "failed"


def test_other_errors_are_not_taken_for_it(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    def broken(_block: torch.nn.Module, _output: torch.Tensor) -> bool:
        raise RuntimeError("a broken kernel")

    memory(broken)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        train(checkpoint, make_store(), tmp_path / "run", short_run(validation="none"), Job())


def test_a_validation_that_does_not_fit_takes_smaller_passes(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    store, settings = make_store(LENGTHS), short_run(batch_size=3, max_steps=2)
    plain = train(checkpoint, store, tmp_path / "plain", settings, Job()).run
    memory(lambda _block, output: not torch.is_grad_enabled() and output.shape[0] > 1)
    run = train(checkpoint, store, tmp_path / "small", settings, Job()).run
    found, expected = ([event["loss"] for event in one.events("validation")] for one in (run, plain))
    assert found == pytest.approx(expected, rel=1e-5) and losses(run) == losses(plain)


def test_what_fits_nowhere_is_said_in_a_sentence(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, memory: Callable[[TooLarge], None]
) -> None:
    memory(lambda *_: not torch.is_grad_enabled())
    with pytest.raises(UserError, match=r"Memory ran out on cpu after step 0, between forward passes.*gradient_chec"):
        train(checkpoint, make_store(), tmp_path / "run", short_run(), Job())


def test_what_previews_load_is_gone_after_them(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    kinds = (Qwen3Model, AutoencoderOobleck, AceStepConditionEncoder)
    used: dict[type, int] = {}
    alive: list[object] = []

    def note(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, kinds):
            used[type(module)] = used.get(type(module), 0) + 1

    def look(_job: Job) -> None:
        alive.extend(item for item in gc.get_objects() if type(item) in kinds)

    settings = short_run(
        preview_every_steps=2, preview_captions=["slow piano"], preview_duration_s=2, preview_steps=2, max_steps=3
    )
    before = [item for item in gc.get_objects() if type(item) in kinds]
    handle = register_module_forward_hook(note)
    try:
        run = train(checkpoint, make_store(), tmp_path / "run", settings, at_step(3, look)).run
    finally:
        handle.remove()
    assert len(list(run.events("preview"))) == 4 and used.get(Qwen3Model)
    assert len(alive) == len(before)


_LIMITED = """
import os, sys, torch
from diffusers.models.transformers.ace_step_transformer import AceStepTransformerBlock
from torch.nn.modules.module import register_module_forward_hook

def hook(module, inputs, output):
    if isinstance(module, AceStepTransformerBlock) and os.environ.get("LOCAL_RANK") == "1":
        if torch.is_grad_enabled() and output.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

register_module_forward_hook(hook)
from acestep.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_processes_agree_when_one_runs_out(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store(LENGTHS)
    settings = short_run(gradient_accumulation=2, dropout=0.0, validation="none", max_steps=3)
    plain = train(checkpoint, store, tmp_path / "plain", settings, Job()).run
    script, config, out = tmp_path / "limited.py", tmp_path / "config.json", tmp_path / "two"
    script.write_text(_LIMITED)
    config.write_text(json.dumps(settings.model_dump(mode="json")))
    options = ["--model", str(checkpoint.dit), "--tensors", str(store.folder), "--out", str(out)]
    more = ["--config", str(config), "--device", "cpu", "--devices", "2", "--json"]
    done = forked.run(
        [sys.executable, str(script), "train", *options, *more], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(out)
    assert measures(run) == ["passes of 1 instead of 2 windows"]
    assert losses(run) == pytest.approx(losses(plain), rel=1e-4)


# Macs, by stand-ins


class Dropping(torch.nn.Module):
    """A layer that draws from a generator of the device's own, as dropout does on a card."""

    def __init__(self, device_generator: torch.Generator) -> None:
        super().__init__()
        self.linear, self._generator = torch.nn.Linear(64, 64), device_generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * (torch.rand(x.shape, generator=self._generator) < 0.5)).sin()


def test_layers_recomputed_on_a_mac_drop_out_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's checkpoint does not keep the generator of Macs: masks were drawn anew, and gradients were wrong."""
    generator = torch.Generator()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device="mps": generator.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device="mps": generator.set_state(state))
    layers = torch.nn.ModuleList([Dropping(generator) for _ in range(3)])

    def gradient(share: float) -> tuple[torch.Tensor, float]:
        calls = [lambda layer, x: layer(x)]
        transformer = SimpleNamespace(
            layers=layers, device=torch.device("mps"), enable_gradient_checkpointing=lambda call: calls.append(call)
        )
        recompute_layers(transformer, share)  # type: ignore[arg-type]
        layers.zero_grad()
        generator.manual_seed(7)
        x = torch.ones(4, 64, requires_grad=True)
        for layer in layers:
            x = calls[-1](layer, x)
        x.square().sum().backward()
        whole = torch.cat([parameter.grad.flatten() for parameter in layers.parameters()])
        return whole, float(torch.rand(1, generator=generator))

    (plain, after), (recomputed, after_recomputing) = gradient(0.0), gradient(1.0)
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)
    assert after == after_recomputing


@pytest.mark.parametrize(("device", "may_return_early"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_batches_reach_a_mac_before_they_are_let_go(device: str, may_return_early: bool) -> None:
    """There torch reads the memory of a tensor that is copied without waiting after it was freed (pytorch#189690)."""
    moved: list[bool] = []
    tensor = SimpleNamespace(to=lambda _, non_blocking=False: moved.append(non_blocking))
    FlowModel._move(SimpleNamespace(device=torch.device(device)), tensor)  # type: ignore[arg-type]
    assert moved == [may_return_early]


# Windows, which removes no file that is mapped into memory


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells which files are mapped")
@pytest.mark.parametrize("kind", [{"adapter": "lora"}, {"adapter": "lokr"}, {"optimizer": "schedule_free"}])
def test_a_resumed_run_keeps_no_file_of_its_checkpoint_mapped(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict[str, object]
) -> None:
    store, settings = make_store([Shape(30)]), short_run(validation="none", max_steps=2, ema_decay=0.9, **kind)
    run = train(checkpoint, store, tmp_path / "run", settings, Job()).run
    (tmp_path / "other").mkdir()
    session, _ = unrecorded_session(checkpoint, store, settings, tmp_path / "other", Job())
    take_up(session, list_checkpoints(run.checkpoints)[-1])
    assert session.state.step == 2
    assert str(run.checkpoints) not in Path("/proc/self/maps").read_text()
