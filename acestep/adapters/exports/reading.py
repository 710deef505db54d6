"""What a program makes of an adapter file, and the formulas by which factors become the change of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class NeedsWeights(Exception):
    """A difference depends on weights of the model, and these are not at hand."""


@dataclass
class Reading:
    """What a program makes of a file: which keys it uses, at what scale, and what it adds to each weight."""

    program: str
    used: set[str] = field(default_factory=set)
    scales: dict[str, float] = field(default_factory=dict)
    deltas: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, module: str, keys: list[str], scale: float, delta: Callable[[], Tensor]) -> None:
        self.used.update(keys)
        self.scales[module] = scale
        self.deltas[module] = delta

    def add_made(
        self,
        module: str,
        keys: list[str],
        scale: float,
        shape: tuple[int, ...],
        formula: Callable[..., Tensor],
        *parts: Tensor,
    ) -> None:
        """Add scale · formula(parts), a matrix [out, rest]; a fault where it is none of a weight of `shape`."""
        if _size_made(formula, parts) != (shape[0], math.prod(shape[1:])):
            self.faults.append(f"{module}: the tensors do not fit the weight, which is {list(shape)}")
            return
        self.add(module, keys, scale, lambda: (scale * formula(*(part.float() for part in parts))).reshape(shape))


def _size_made(formula: Callable[..., Tensor], parts: Iterable[Tensor]) -> tuple[int, ...] | None:
    """Sizes of what a formula makes of tensors of these sizes; None where they do not go together."""
    try:
        return tuple(formula(*(torch.empty(part.shape, device="meta") for part in parts)).shape)
    except (RuntimeError, LookupError):
        return None


KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def rows_of(tensor: Tensor) -> int:
    """Rows of a factor, which are its rank; 1 for what is no factor at all."""
    return (tensor.shape[0] if tensor.ndim else 0) or 1


def low_rank(up: Tensor, down: Tensor) -> Tensor:
    return up.flatten(1) @ down.flatten(1)


def hadamard(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.einsum("or,ri,os,si->oi", a, b, c, d)


def kronecker(names: Iterable[str]) -> Callable[..., Tensor]:
    """kron(w1, w2) of the tensors of these names, with entries w1[i, k] · w2[j, l] at [i · b + j, k · d + l]."""

    def formula(*tensors: Tensor) -> Tensor:
        parts = dict(zip(names, tensors, strict=True))
        first, second = (
            parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"] for name in ("lokr_w1", "lokr_w2")
        )
        return torch.einsum("ac,bd...->abcd...", first, second).flatten(0, 1).flatten(1)

    return formula
