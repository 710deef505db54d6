"""LoKr on the transformer's linear layers: LyCORIS' modules, with the factors applied to the activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lycoris.modules.lokr import LokrModule
from torch import Tensor

from acestep.adapters.lycoris_adapter import LycorisAdapter
from acestep.adapters.specs import LokrSpec


class KroneckerModule(LokrModule):
    """A LyCORIS LoKr module whose linear form never builds kron(w1, w2).

    With x [tokens, in] seen as [tokens, c, d] and the output as [tokens, a, b], where w1 is [a, c] and w2 [b, d],
    the difference is y[t, i, j] = sum over k, l of w1[i, k] w2[j, l] x[t, k, l]. Either factor can go first; both
    are large matrix products when the group axis stands in front, and the order with fewer multiplications is taken.
    """

    def __init__(self, *args: Any, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.dropout = dropout  # not passed on: LyCORIS would print that it ignores it
        self.is_linear = self.module_type == "linear"
        if self.is_linear:
            self._plan()

    def _plan(self) -> None:
        """Choose the cheaper order for this layer's sizes. Multiplications are counted for one token."""
        w1_shape = self.lokr_w1.shape if self.use_w1 else (self.lokr_w1_a.shape[0], self.lokr_w1_b.shape[1])
        w2_shape = self.lokr_w2.shape if self.use_w2 else (self.lokr_w2_a.shape[0], self.lokr_w2_b.shape[1])
        self.out_groups, self.in_groups = w1_shape  # a, c
        self.out_width, self.in_width = w2_shape  # b, d
        whole = self.out_width * self.in_width
        in_two_steps = whole if self.use_w2 else self.lora_dim * (self.out_width + self.in_width)
        self.w2_in_two_steps = in_two_steps < whole
        w2 = min(whole, in_two_steps)
        w1 = self.out_groups * self.in_groups
        w2_first = self.in_groups * w2 + w1 * self.out_width
        w1_first = self.out_groups * w2 + w1 * self.in_width
        self.w1_goes_first = w1_first < w2_first

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.multiplier == 0:
            return self.org_forward(x, *args, **kwargs)
        if self.wd or not self.is_linear:
            return super().forward(x, *args, **kwargs)
        base = self.org_forward(x)  # [..., a · b]
        grouped = base.reshape(-1, self.out_groups, self.out_width)
        return (grouped + self._difference(x, self.multiplier)).reshape(base.shape)

    def bypass_forward_diff(self, h: Tensor, scale: float = 1) -> Tensor:
        if not self.is_linear:
            return super().bypass_forward_diff(h, scale)
        return self._difference(h, scale).reshape(*h.shape[:-1], -1)

    def _difference(self, x: Tensor, strength: float) -> Tensor:
        """x [..., c · d] -> [tokens, a, b], in the type of x (or autocast's)."""
        # Under autocast the casts of fp32 weights are its own business; without, they follow the activations.
        w1 = self.lokr_w1 if self.use_w1 else self.lokr_w1_a @ self.lokr_w1_b
        w1 = (w1 * (self.scale * strength)).to(x.dtype)  # [a, c]; small, so the scale goes in here
        if self.w1_goes_first:
            rows = x.reshape(-1, self.in_groups, self.in_width).transpose(0, 1)  # [c, tokens, d]
            mixed = torch.mm(w1, rows.reshape(self.in_groups, -1))  # [a, tokens · d]
            y = self._times_w2(mixed.view(-1, self.in_width))  # [a · tokens, b]
        else:
            h = self._times_w2(x.reshape(-1, self.in_width))  # [tokens · c, b]
            rows = h.view(-1, self.in_groups, self.out_width).transpose(0, 1)  # [c, tokens, b]
            y = torch.mm(w1, rows.reshape(self.in_groups, -1))  # [a, tokens · b]
        y = y.view(self.out_groups, -1, self.out_width).transpose(0, 1)
        # the wrapped layer's own mode: this module is no part of the transformer and does not hear its train()
        return F.dropout(y, self.dropout, self.org_module[0].training) if self.dropout else y

    def _times_w2(self, x: Tensor) -> Tensor:
        """x [rows, d] -> x w2ᵀ [rows, b]."""
        if self.use_w2:
            return F.linear(x, self.lokr_w2.to(x.dtype))
        if self.w2_in_two_steps:
            return F.linear(F.linear(x, self.lokr_w2_b.to(x.dtype)), self.lokr_w2_a.to(x.dtype))
        return F.linear(x, (self.lokr_w2_a @ self.lokr_w2_b).to(x.dtype))

    def stores_second_factor_whole(self) -> bool:
        return self.use_w2 and not self.full_matrix


class LokrAdapter(LycorisAdapter):
    """W' = W + scale · kron(w1, w2), where w2, and w1 if wanted, may be products of two thin matrices."""

    kind = "lokr"
    name = "LoKr"
    spec: LokrSpec
    module_class = KroneckerModule

    def _notes(self) -> tuple[str, ...]:
        whole = sum(module.stores_second_factor_whole() for module in self._modules.values())
        if not whole:
            return ()
        return (
            f"LoKr dimension {self.spec.linear_dim} is too large for {whole} of {len(self._modules)} modules at factor"
            f" {self.spec.factor}: they store their second factor whole, and dimension and alpha have no effect on it."
            " The factor alone sets the adapter's size there.",
        )
