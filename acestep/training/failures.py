"""Errors of torch that a user can do something about, as sentences. Everything else keeps its traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from acestep.core.device import lacks_memory
from acestep.core.errors import UserError
from acestep.training.checkpoints import list_checkpoints, step_of

_DEVICE_SIGNS = ("CUDA error", "CUDA driver error", "HIP error", "cuBLAS", "CUBLAS_STATUS", "cuDNN error", "XPU error")
"""How messages of a card that has failed begin, where torch raises a plain RuntimeError."""

_PEER_SIGNS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""How gloo and NCCL word that another process of the run is no more."""


def explained(error: BaseException, run: Path, step: int) -> UserError | None:
    """The sentence for an error that ended the run at `step`, or None where there is none."""
    if isinstance(error, RuntimeError | MemoryError) and lacks_memory(error):
        message = f"The memory ran out at step {step}."
        remedy = (
            "End other programs, or begin again with --gradient-checkpointing 1, a smaller batch or shorter windows."
        )
    elif is_device_failure(error):
        message = f"The graphics card stopped working at step {step}."
        remedy = "Start the program again; if it happens again, restart the machine and look at the card's heat."
    elif lost_a_process(error):
        message = f"Another process of this run ended at step {step}."
        remedy = "What it said itself tells why."
    else:
        return None
    kept = list_checkpoints(run / "checkpoints")
    if kept:
        remedy += f" Everything up to step {step_of(kept[-1])} is kept: acestep train --resume {run}"
    return UserError(message, fix=remedy, detail="".join(traceback.format_exception_only(error)).strip())


def lost_a_process(error: BaseException | None) -> bool:
    """Whether this process only waited for another one, which has ended."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_SIGNS)


def is_device_failure(error: BaseException) -> bool:
    """Whether the card or its driver failed; such a process cannot compute on it any more."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(_DEVICE_SIGNS)
