"""Compiled blocks compute what plain ones do, and where they cannot be compiled the run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from hand_made import MakeStore, Shape, short_run

from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.settings import HardwareSettings
from acestep.training.compiling import wants_compiling
from acestep.training.runs import RunFolder
from acestep.training.train import train


def losses(run: RunFolder) -> list[float]:
    return [event["loss"] for event in run.events("step")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the processor takes g++")
def test_a_compiled_run_is_right_or_says_that_it_is_not_compiled(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Some versions of torch compile this tiny model wrongly; the run must then be the plain one.

    The first step tries one shape; the later ones are of others, and are right as well.
    """
    store = make_store([Shape(30 + 8 * i, head=4 + 30 * i) for i in range(4)])
    settings = short_run(dropout=0.0, validation="none", max_steps=4, batch_size=1)
    plain = train(checkpoint, store, tmp_path / "plain", settings, Job()).run
    torch.compiler.reset()
    run = train(checkpoint, store, tmp_path / "compiled", settings.changed(compile="on"), Job()).run
    warnings = [event["text"] for event in run.events("warning")]
    if warnings:
        assert "cannot be compiled here" in warnings[0] and losses(run) == losses(plain)
    for name in ("loss", "grad_norm"):
        expected = [event[name] for event in plain.events("step")]
        assert [event[name] for event in run.events("step")] == pytest.approx(expected, rel=2e-3)


def test_a_missing_c_compiler_leaves_the_blocks_plain(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton calls it while a compiled block runs for the first time, and lets its error through as it is."""

    def compiled(block: torch.nn.Module, **_: object) -> None:
        def call(*_: object, **__: object) -> None:
            raise CalledProcessError(1, ["gcc", "launcher.c"])

        block._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    settings = short_run(validation="none", max_steps=1, compile="on")
    run = train(checkpoint, make_store([Shape(30)]), tmp_path / "run", settings, Job()).run
    (warning,) = (event["text"] for event in run.events("warning"))
    assert "cannot be compiled here" in warning and "gcc" in warning
    assert len(losses(run)) == 1


class Block(torch.nn.Module):
    """A block with dropout, and a size of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.dropout, self.down = torch.nn.Linear(8, width), torch.nn.Dropout(0.1), torch.nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.dropout(self.up(x)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the processor takes g++")
def test_compiled_blocks_drop_out_what_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each block has a size of its own, as ranks by layer give them, and shapes change."""
    from acestep.training import compiling

    monkeypatch.setattr(compiling, "MOST_VARIANTS", 2)
    torch.manual_seed(1)
    blocks = torch.nn.Sequential(*(Block(width) for width in (8, 12)))

    def gradient(length: int) -> torch.Tensor:
        blocks.zero_grad()
        torch.manual_seed(0)
        blocks(torch.ones(4, length, 8)).pow(2).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in blocks.parameters()])

    lengths = (16, 24)
    plain = [gradient(length) for length in lengths]
    torch.compiler.reset()
    with compiling.compiler_settings(len(blocks)):
        for block in blocks:
            block.compile(fullgraph=True, dynamic=False)
        for length, expected in zip(lengths, plain, strict=True):
            torch.testing.assert_close(gradient(length), expected)
    torch.compiler.reset()


def test_a_processor_compiles_only_when_asked() -> None:
    cpu = torch.device("cpu")
    assert not wants_compiling(HardwareSettings(), cpu)
    assert wants_compiling(HardwareSettings(compile="on"), cpu)
    assert not wants_compiling(HardwareSettings(compile="off"), torch.device("cuda"))


@pytest.mark.parametrize("who", ["this process", "another", "nobody"])
def test_processes_compile_all_or_none_and_wait_for_each_other_alike(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Where one cannot compile and left out a question to the others, all would wait for each other from then on."""
    from acestep.training import compiling
    from acestep.training.estimate import unrecorded_session

    session, _ = unrecorded_session(checkpoint, make_store([Shape(30)]), short_run(validation="none"), tmp_path, Job())
    asked: list[bool] = []

    def any_of(flag: bool) -> bool:
        asked.append(flag)
        return flag or (who == "another" and len(asked) == 3)

    def compiled(block: torch.nn.Module, **_: object) -> None:
        def fail(*_: object, **__: object) -> None:
            raise CalledProcessError(1, ["gcc", "launcher.c"])

        block._compiled_call_impl = fail if who == "this process" else block._call_impl

    monkeypatch.setattr(session.processes, "any", any_of)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    assert compiling._compile(session, Job()) == (who == "nobody")
    assert asked == [False, False, who == "this process"]
    blocks = session.model.transformer.layers
    assert all((block._compiled_call_impl is None) == (who != "nobody") for block in blocks)
