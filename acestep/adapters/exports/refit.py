"""The nearest plain LoRA to a weight difference, and how near it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SPARE_RANKS = 16
_ROUNDS = 4
_SMALL = 256


def refit(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`down` [rank, in] and `up` [out, rank] whose product is the best approximation of `delta` [out, in].

    By the Eckart-Young theorem that is the truncated singular value decomposition. Large matrices are decomposed with
    random projections (Halko, Martinsson and Tropp 2011), the same in every run.
    """
    rank = min(rank, *delta.shape)
    if min(delta.shape) <= max(_SMALL, 2 * (rank + _SPARE_RANKS)):
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, turned = torch.svd_lowrank(delta, q=rank + _SPARE_RANKS, niter=_ROUNDS)
        right = turned.T
    roots = values[:rank].sqrt()  # each factor gets half of the size, which suits bf16
    return roots[:, None] * right[:rank], left[:, :rank] * roots


@dataclass
class RefitError:
    """How much of an adapter's effect is left out: Frobenius norms of what is missing over what was there."""

    missing: float = 0.0
    whole: float = 0.0
    worst: float = 0.0
    worst_module: str = ""

    def add(self, module: str, delta: Tensor, approximation: Tensor) -> None:
        missing = float((delta.reshape(approximation.shape) - approximation).square().sum())
        whole = float(delta.square().sum())
        self.missing += missing
        self.whole += whole
        share = (missing / whole) ** 0.5 if whole else 0.0
        if share >= self.worst:
            self.worst, self.worst_module = share, module

    @property
    def total(self) -> float:
        return (self.missing / self.whole) ** 0.5 if self.whole else 0.0
