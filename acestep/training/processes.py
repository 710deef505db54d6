"""Several processes training one adapter: who takes which micro-batch, and how their gradients become one.

The micro-batches of an optimizer step are dealt out to the processes, and the gradients of the adapter, which is
small, are added up once a step. So two processes compute what one does with the same settings, up to the order of
additions, and every kind of adapter can be trained this way, wherever its weights live.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from acestep.adapters import Adapter
from acestep.core.device import DeviceChoice
from acestep.core.errors import UserError
from acestep.core.together import end_with_parent
from acestep.settings import HardwareSettings

T = TypeVar("T")
FP16_LOSS_SCALE = 1024.0
"""Gradients in fp16 vanish below 6e-8; the loss is made so much larger, to begin with, and the gradients smaller again.
From torch's own 65536 the first steps of a run would overflow and be left out."""
LONGEST_WAIT = timedelta(hours=2)
"""Processes wait for the first one while it validates, saves and plays previews."""


class Processes:
    """The processes of a run. With one, everything here does nothing."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.count: int = fabric.world_size
        self.rank: int = fabric.global_rank

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and speaks to the user."""
        return self.rank == 0

    def alone(self) -> Processes:
        """This process as if it were the only one, to measure what must not wait for others."""
        solo = copy.copy(self)
        solo.rank, solo.count = 0, 1
        return solo

    def share(self, micro_batches: Sequence[T]) -> list[tuple[int, T]]:
        """This process's part of an optimizer step, each micro-batch with its number in the step."""
        return list(enumerate(micro_batches))[self.rank :: self.count]

    def add_up(self, adapter: Adapter, total: torch.Tensor) -> torch.Tensor:
        """Sum gradients and `total` over all processes; parameters without a gradient count as zero."""
        if self.count == 1:
            return total
        if self.scaler is not None:
            self.scaler.scale(total)  # begins with the first loss it sees, and a process without work has none
        parameters = adapter.parameters()
        parts = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
            for parameter in parameters
        ]
        flat = torch.cat([*parts, total.reshape(1)])
        flat = self.fabric.all_reduce(flat, reduce_op="sum")
        position = 0
        for parameter in parameters:
            parameter.grad = flat[position : position + parameter.numel()].view_as(parameter).clone()
            position += parameter.numel()
        return flat[-1]

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss up in fp16, where small gradients would vanish."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def note_overflow(self) -> None:
        """A step is left out for its gradient: in fp16 the loss is scaled up less from now on."""
        if self.scaler is not None:
            self.scaler.update()

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag), device=self.fabric.device)
        return bool(self.fabric.all_reduce(told, reduce_op="sum") > 0)

    def from_main(self, value: T) -> T:
        """The first process's value, everywhere."""
        return value if self.count == 1 else self.fabric.broadcast(value)

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.fabric.barrier()

    def autocast(self) -> AbstractContextManager[Any]:
        return self.fabric.autocast()


def start_processes(settings: HardwareSettings, choice: DeviceChoice) -> Processes:
    """One process a device: starts the missing ones, or takes those that torchrun or `fabric run` has started."""
    precision = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}[choice.precision]
    if choice.device == "xpu":
        fabric = _xpu_fabric(choice, precision)
    elif settings.devices * settings.num_nodes == 1 and "WORLD_SIZE" not in os.environ:
        fabric = Fabric(accelerator=choice.device, devices=1, precision=precision)
    else:
        fabric = _many(settings, choice, precision)
    with _can_be_started_again():
        fabric.launch()
    processes = Processes(fabric)
    if processes.scaler is not None:
        processes.scaler.load_state_dict({**processes.scaler.state_dict(), "scale": FP16_LOSS_SCALE})
    if not processes.is_main:
        end_with_parent()
    return processes


def _many(settings: HardwareSettings, choice: DeviceChoice, precision: str) -> Fabric:
    from lightning_fabric.strategies import DDPStrategy

    if choice.device == "cuda" and settings.devices > torch.cuda.device_count():
        raise UserError(
            f"{settings.devices} devices were asked for, this machine has {torch.cuda.device_count()}.",
            fix='Lower "devices".',
        )
    if choice.device not in ("cuda", "cpu"):
        raise UserError(f"Training on several devices works with cuda and cpu, not {choice.device}.", fix="Use one.")
    return Fabric(
        accelerator=choice.device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=DDPStrategy(process_group_backend=_backend(choice.device), timeout=LONGEST_WAIT),
        precision=precision,
    )


def _backend(device: str) -> str | None:
    """How processes talk to each other: None is Fabric's choice, which is NCCL on cards. Windows has none."""
    return "gloo" if device == "cuda" and not torch.distributed.is_nccl_available() else None


@contextmanager
def _can_be_started_again() -> Iterator[None]:
    """While this lasts Fabric finds out how to start helpers: it runs this program's main module again by its name.

    The `acestep` program of Windows holds Python code in an archive, whose main module has no name to be found by.
    """
    main = sys.modules["__main__"]
    spec = main.__spec__
    if spec is not None and spec.name == "__main__":
        main.__spec__ = find_spec("acestep.__main__")
    try:
        yield
    finally:
        main.__spec__ = spec


def _xpu_fabric(choice: DeviceChoice, precision: str) -> Fabric:
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.strategies import SingleDeviceStrategy

    plugins = [] if choice.precision == "fp32" else [MixedPrecision(precision, device="xpu")]
    return Fabric(strategy=SingleDeviceStrategy(device=choice.torch_device), plugins=plugins)
