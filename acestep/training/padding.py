"""Conditions of different lengths in one batch.

The model takes no condition mask: padding would be attended to like real tokens. So padded places are masked
inside cross-attention, which makes a batch of N give the same numbers as N batches of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0, AceStepTransformer1DModel
from torch import Tensor


class ConditionMask:
    """Holds the mask of the present batch; the cross-attention of every layer looks here.

    Lengths are rounded up to a `multiple`, so that blocks compiled for fixed shapes meet few of them.
    """

    def __init__(self, transformer: AceStepTransformer1DModel) -> None:
        self.bias: Tensor | None = None
        self.multiple = 1
        for layer in transformer.layers:
            layer.cross_attn.set_processor(_MaskedCrossAttention(self))

    def pad(self, conditions: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Stack conditions (L_i, E) to (B, L, E), L ≥ all L_i, and remember which places are padding.

        The mask stays in force until the next call, so that recomputed layers see it in the backward pass.
        """
        lengths = [condition.shape[0] for condition in conditions]
        whole = self.whole_length(max(lengths))
        self.bias = None
        if min(lengths) == whole:
            return torch.stack(conditions).to(dtype)
        padded = torch.nn.utils.rnn.pad_sequence(conditions, batch_first=True).to(dtype)
        padded = torch.nn.functional.pad(padded, (0, 0, 0, whole - padded.shape[1]))
        self.cover(torch.tensor(lengths, device=padded.device), whole)
        return padded

    def whole_length(self, longest: int) -> int:
        """The length to which conditions are padded of which the longest has this one."""
        return -(-longest // self.multiple) * self.multiple

    def cover(self, lengths: Tensor, whole: int) -> None:
        """Mask what lies behind the lengths (B,) of conditions that are padded to `whole` already."""
        places = torch.arange(whole, device=lengths.device)
        real = places[None] < lengths[:, None]  # (B, L)
        self.bias = real[:, None, None, :]  # (B, 1, 1, L)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """No mask while the block lasts: for calls with a condition of their own."""
        kept, self.bias = self.bias, None
        try:
            yield
        finally:
            self.bias = kept


class _MaskedCrossAttention(AceStepAttnProcessor2_0):
    def __init__(self, mask: ConditionMask) -> None:
        super().__init__()
        self._mask = mask

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, self._mask.bias, image_rotary_emb)
