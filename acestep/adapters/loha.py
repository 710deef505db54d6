"""LoHa on the transformer's linear layers: LyCORIS' modules, which keep only the thin factors for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lycoris.modules.loha import LohaModule
from torch import Tensor

from acestep.adapters.lycoris_adapter import LycorisAdapter
from acestep.adapters.specs import LohaSpec


class _HadamardLinear(torch.autograd.Function):
    """x [tokens, in] -> x ΔWᵀ [tokens, out] with ΔW = scale (w1_a w1_b) ⊙ (w2_a w2_b) [out, in].

    ΔW cannot be applied factor by factor. It is as large as the layer's own weight, so the backward pass makes it anew
    rather than have one kept for every layer. Products are fp32; ΔW meets x in the type of x.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # autograd's own is untyped
        ctx: Any, x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, w1_a, w1_b, w2_a, w2_b)
        ctx.scale = scale
        with torch.autocast(x.device.type, enabled=False):
            difference = (w1_a @ w1_b).mul_(w2_a @ w2_b).mul_(scale)
            return F.linear(x, difference.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            first, second = w1_a @ w1_b, w2_a @ w2_b
            of_x = gradient @ (first * second * ctx.scale).to(x.dtype) if ctx.needs_input_grad[0] else None
            of_difference = (gradient.T @ x).to(first.dtype) * ctx.scale
            of_first, of_second = of_difference * second, of_difference * first
            return (of_x, of_first @ w1_b.T, w1_a.T @ of_first, of_second @ w2_b.T, w2_a.T @ of_second, None)


class HadamardModule(LohaModule):
    """A LyCORIS LoHa module whose linear form keeps no matrix of the layer's size for the backward pass."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.multiplier == 0:
            return self.org_forward(x, *args, **kwargs)
        if self.wd or self.module_type != "linear":
            return super().forward(x, *args, **kwargs)
        base = self.org_forward(x)
        device = x.device.type
        rows = x.reshape(-1, x.shape[-1])
        # Autocast does not reach into a function with its own backward pass.
        rows = rows.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype)
        factors = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        difference: Tensor = _HadamardLinear.apply(rows, *factors, self.scale * self.multiplier)
        return base + difference.reshape(base.shape)


class LohaAdapter(LycorisAdapter):
    """W' = W + scale · (w1_a w1_b) ⊙ (w2_a w2_b): a difference of rank dim² from twice the weights of rank dim."""

    kind = "loha"
    name = "LoHa"
    spec: LohaSpec
    module_class = HadamardModule
