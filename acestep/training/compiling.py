"""Compiling the transformer block by block.

Every block is the same code, so one compilation serves all; norms, rotary embeddings and gates become few kernels.
Where compiling fails, training goes on without it and says so once.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import TYPE_CHECKING

import torch

from acestep.core.device import lacks_memory
from acestep.core.jobs import Job
from acestep.core.words import counted
from acestep.settings import HardwareSettings

if TYPE_CHECKING:
    from acestep.training.loop import Session


def wants_compiling(settings: HardwareSettings, device: torch.device) -> bool:
    """Whether to compile: as set, and for auto on CUDA where Triton is installed.

    On a processor it takes a C++ compiler, and what it wins there against its own time is not measured, so there it
    must be asked for.
    """
    if settings.compile == "auto":
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return settings.compile == "on"


LARGEST_GRADIENT_ERROR = {"fp32": 1e-3, "mixed": 5e-2}
"""How far a compiled gradient may be from the plain one, relative to its length."""
MOST_VARIANTS = 64
"""Compilations of each block: the shapes and modes it is called with. Blocks with ranks of their own share none."""
CONDITION_MULTIPLE = 64
"""On a processor conditions are padded to such lengths, so that most batches have the shape that was tried."""


@contextmanager
def compiled_blocks(session: Session, job: Job) -> Iterator[None]:
    """Blocks are compiled while this lasts, if one real pass gives the gradient of the plain blocks.

    Compilers make mistakes that no error reports: on processors torch 2.13 gives wrong gradients for most models, and
    for those it gets right again with the next shape. So there only what was tried runs compiled, the rest plain.
    The trial leaves no trace: every draw of a step has its own seed, and its gradients are thrown away.
    """
    with compiler_settings(len(session.model.transformer.layers)):
        if session.processes.fabric.device.type != "cpu":
            _compile(session, job)
            yield
            return
        session.model.round_conditions_up(CONDITION_MULTIPLE)
        if not _compile(session, job, dynamic=False):
            session.model.round_conditions_up(1)
        with torch.compiler.set_stance("eager_on_recompile"):
            yield


@contextmanager
def compiler_settings(blocks: int) -> Iterator[None]:
    """Room for the variants of so many blocks, and random numbers as plain blocks draw them.

    With others the trial would take another dropout for a mistake.
    """
    from torch._dynamo import config
    from torch._inductor import config as inductor

    most = MOST_VARIANTS * blocks
    with config.patch(recompile_limit=most, accumulated_recompile_limit=most), inductor.patch(fallback_random=True):
        yield


def _compile(session: Session, job: Job, dynamic: bool | None = None) -> bool:
    """Compile every block, try them, and take it back where they are wrong or can't be compiled.

    Compilers fail with errors of many kinds, those of a missing C compiler among them; the plain pass has just worked.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    failures = (FailOnRecompileLimitHit, RuntimeError, OSError, SubprocessError)
    blocks = session.model.transformer.layers
    plain = _trial_gradient(session, ())
    assert isinstance(plain, torch.Tensor)
    for block in blocks:
        block.compile(fullgraph=True, dynamic=dynamic)
    began = time.perf_counter()
    found = _trial_gradient(session, failures)
    if isinstance(found, torch.Tensor):
        error = float((found - plain).norm() / plain.norm().clamp(min=1e-12))
        limit = LARGEST_GRADIENT_ERROR["fp32" if session.model.transformer.dtype == torch.float32 else "mixed"]
        reason = "" if error <= limit else f"its gradients differ by {100 * error:.1f} %"
    else:
        reason = (str(found).strip().splitlines() or [type(found).__name__])[0]
    if not session.processes.any(bool(reason)):
        job.say(f"compiled {counted(len(blocks), 'blocks')} in {time.perf_counter() - began:.0f} s")
        return True
    for block in blocks:
        block._compiled_call_impl = None
    reason = reason or "another process cannot compile it"
    session.record.warn(session.state.step, f"The model cannot be compiled here, so it runs as it is: {reason}.")
    return False


def _trial_gradient(session: Session, failures: tuple[type[Exception], ...]) -> torch.Tensor | Exception:
    """The adapter's gradient on the first batch of the next step, flat, with the same dropout each time.

    Of `failures` one is returned where it comes up, unless memory lacks: processes must go through `room_for` alike.
    """
    from acestep.training.data import draw_batch
    from acestep.training.loop import steps_of
    from acestep.training.step_down import room_for

    epoch, micro_batches = steps_of(session, min(session.state.step, session.plan.total_steps - 1))
    part = session.economy.parts(micro_batches[0])[0]
    batch = draw_batch(part, epoch, session.data, session.settings, session.flow)
    torch.manual_seed(0)
    try:
        with room_for(session, micro_batches):
            try:
                session.processes.fabric.backward(session.model.item_losses(batch, 0.0).sum())
            except failures as failure:
                if lacks_memory(failure):
                    raise
                return failure
        gradients = [parameter.grad for parameter in session.adapter.parameters()]
        return torch.cat([gradient.detach().float().reshape(-1) for gradient in gradients if gradient is not None])
    finally:
        session.optimizer.zero_grad(set_to_none=True)
