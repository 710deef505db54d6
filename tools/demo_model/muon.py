"""Muon for many small matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """torch's Muon, which makes the matrices of one shape orthogonal together.

    The numbers are torch's but for rounding. One by one, a hundred small matrices take some 2500 kernels a step, each
    of which a graphics card gets from Python.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, matrices in by_shape.items():
                self._step_together(group, shape, matrices)

    def _step_together(self, group: dict, shape: torch.Size, matrices: list[Tensor]) -> None:
        gradients, momenta = [], []
        self._init_group({"params": matrices}, [], gradients, momenta)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        directions = _orthogonal(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(shape) ** 0.5  # adjust_lr_fn="match_rms_adamw"
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, directions.to(matrices[0].dtype).unbind(), alpha=-rate)


def _orthogonal(stacked: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration on matrices (B, M, N) in bf16.  Source: torch/optim/_muon.py."""
    a, b, c = coefficients
    found = stacked.bfloat16()
    upright = found.shape[1] > found.shape[2]
    if upright:
        found = found.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if upright else found
