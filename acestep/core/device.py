"""Which device and precision to compute with, and why; freeing memory between phases."""

from __future__ import annotations

import gc
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from acestep.core.errors import UserError
from acestep.core.heap import keep_freed_pages, release_freed_pages

if TYPE_CHECKING:
    import torch

DeviceName = Literal["auto", "cuda", "xpu", "mps", "cpu"]
Precision = Literal["bf16", "fp16", "fp32"]
PrecisionName = Literal["auto", Precision]

_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""How torch words a lack of memory where it has no exception of its own for it."""


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the dtype of frozen weights on it, and the reason in words for the log."""

    device: str
    precision: Precision
    reason: str

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]

    def __str__(self) -> str:
        return f"{self.device} in {self.precision} ({self.reason})"


def available_devices() -> list[str]:
    """Device kinds this machine can compute on, best first."""
    import torch

    found = []
    if torch.cuda.is_available() and not unusable_card():
        found.append("cuda")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def unusable_card() -> str:
    """Why this build of torch cannot compute on the first NVIDIA card; empty where it can, and where there is none.

    Builds for CUDA 13 hold no code for cards before Turing, but list them as available.
    """
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():  # AMD's builds have names of their own for cards
        return ""
    names = (re.match(r"(sm|compute)_(\d+)", name) for name in torch.cuda.get_arch_list())
    built = [(match[1], int(match[2])) for match in names if match]
    major, minor = torch.cuda.get_device_capability()
    # code for a card runs on others of its generation from it on; code to be translated (compute) on all from it on
    fits = [code <= 10 * major + minor and (kind == "compute" or code // 10 == major) for kind, code in built]
    if any(fits) or not built:
        return ""
    return f"torch {torch.__version__} holds no code for {torch.cuda.get_device_name()} (capability {major}.{minor})"


def choose_device(device: DeviceName = "auto", precision: PrecisionName = "auto") -> DeviceChoice:
    """Pick device and precision; a wish that the machine cannot fulfil is a UserError."""
    found = available_devices()
    chosen = found[0] if device == "auto" else device
    if chosen not in found:
        raise UserError(
            f"The device {chosen} is not available here.",
            fix=f"Choose auto or one of: {', '.join(found)}.",
            detail=(unusable_card() if chosen == "cuda" else "")
            or "A torch build without support for the card looks the same; `acestep doctor` tells.",
        )
    if chosen == "cpu":
        keep_freed_pages()
    best, reason = _best_precision(chosen)
    if chosen == "cpu" and device == "auto" and (trouble := unusable_card()):
        reason = trouble
    if precision == "auto":
        return DeviceChoice(chosen, best, reason)
    if precision == "fp16" and chosen == "cpu":
        raise UserError("Processors do not train in fp16.", fix="Choose precision auto, fp32 or bf16.")
    if precision == "bf16" and chosen == "cuda" and best == "fp16":
        raise UserError(f"This graphics card has no bf16 ({reason}).", fix="Choose precision auto or fp16.")
    return DeviceChoice(chosen, precision, "chosen in the settings")


def _best_precision(device: str) -> tuple[Precision, str]:
    import torch

    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        if major >= 8:
            return "bf16", f"{name} computes bf16"
        return "fp16", f"{name}, capability {major}.{minor}, has no bf16 units"
    if device == "xpu":
        return "bf16", "Intel GPUs compute bf16"
    if device == "mps":
        system = macos_version()[0]
        if system >= 14:
            return "bf16", f"macOS {system} computes bf16"
        return "fp32", "bf16 needs macOS 14 or later"
    return "fp32", "CPUs train fastest and most exactly in fp32"


def macos_version() -> tuple[int, int]:
    """Such as (15, 1); zeros on other systems."""
    major, minor, *_ = [*(platform.mac_ver()[0] or "0").split("."), "0"]
    return int(major), int(minor)


def free_memory() -> None:
    """Give memory that nothing refers to any more back to the device; call after dropping a model."""
    import torch

    gc.collect()
    release_freed_pages()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif hasattr(torch, "xpu") and torch.xpu.is_available():
        torch.xpu.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS)


@contextmanager
def memory_told(message: str, fix: str) -> Iterator[None]:
    """A lack of memory inside the block is a UserError with this message and remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise UserError(message, fix=fix) from error


def device_memory() -> tuple[int, int] | None:
    """(free, total) bytes of the first CUDA device, or None where there is none."""
    import torch

    return torch.cuda.mem_get_info() if torch.cuda.is_available() else None


def memory_in_use() -> tuple[int, str]:
    """Bytes in use where models lie, and what that is: the first CUDA device, Metal's share, else this process."""
    import torch

    memory = device_memory()
    if memory is not None:
        return memory[1] - memory[0], "graphics memory"
    if torch.backends.mps.is_available():  # the system does not count it as this process's
        return torch.mps.driver_allocated_memory(), "graphics memory"
    import psutil

    return psutil.Process().memory_info().rss, "memory of this program"
