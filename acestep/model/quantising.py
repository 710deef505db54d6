"""Frozen linear layers with weights of 8 or 4 bits, so that the base model of a training takes less memory.

Weights are stored small and made whole for each use: every product is computed in the usual precision, and no
activation is rounded. bitsandbytes' own 8-bit layer rounds activations to fp16 and keeps them in the graph, where
gradient checkpointing cannot let them go; so only its 4-bit coding is used here.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.core.errors import UserError
from acestep.settings.train import BaseWeights

NF4_DEVICES = ("cuda", "cpu")
_NF4_BLOCK = 64
_HIGHEST_INT8 = 127


class QuantisedLinear(nn.Linear):
    """A frozen linear layer. `weight` gives the weight [out, in] as it is used, made anew at each look.

    int8 has one scale a row (largest magnitude = 127); nf4 has one for 64 values (Dettmers et al. 2023, QLoRA).
    """

    def __init__(self, weight: Tensor, kind: BaseWeights) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = weight.shape
        self.weight_dtype = weight.dtype
        codes, scales = _quantise(weight.detach(), kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", None)  # the blocks' layers have none

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in nn.Linear
        return self._weight_in(self.weight_dtype)

    def _weight_in(self, dtype: torch.dtype) -> Tensor:
        return _dequantise(self.codes, self.scales, (self.out_features, self.in_features), dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        shape = (self.out_features, self.in_features)
        y: Tensor = _FrozenLinear.apply(x.to(dtype), self.codes, self.scales, shape)
        return y


class _FrozenLinear(torch.autograd.Function):
    """x [..., in] -> x Wᵀ [..., out]. The whole weight is not kept for the backward pass but made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:  # type: ignore[override]  # autograd's own is untyped
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, _dequantise(codes, scales, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # as above
        codes, scales = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return gradient @ _dequantise(codes, scales, ctx.shape, gradient.dtype), None, None, None


def _quantise(weight: Tensor, kind: BaseWeights) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight [out, in]."""
    if kind == "nf4":
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(weight.contiguous(), blocksize=_NF4_BLOCK, quant_type="nf4")
        return codes, state.absmax
    values = weight.float()
    scales = values.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _HIGHEST_INT8
    return (values / scales).round().to(torch.int8), scales


def _dequantise(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if codes.dtype == torch.int8:
        return (codes * scales).to(dtype)
    return torch.ops.bitsandbytes.dequantize_4bit.default(codes, scales, _NF4_BLOCK, "nf4", shape, dtype)


def require_quantising(kind: BaseWeights, device: str) -> None:
    """Raise a UserError where the device cannot compute with such weights."""
    if reason := why_not(kind, device):
        raise UserError(f'Setting "base_weights": {reason}.', fix="Choose int8 or full.")


def why_not(kind: BaseWeights, device: str) -> str:
    """Why weights of this kind cannot be used on a kind of device; empty where they can."""
    if kind != "nf4":
        return ""
    if device not in NF4_DEVICES:
        return f"nf4 works on {' and '.join(NF4_DEVICES)}, not on {device}"
    if find_spec("bitsandbytes") is None:
        return "nf4 needs the package bitsandbytes, which is not installed"
    return ""


def quantise_block_weight(transformer: nn.Module, name: str, weight: Tensor, kind: BaseWeights) -> bool:
    """Put the weight `name` into the transformer in a quantised layer, if it belongs to a linear layer of a block.

    Says whether it did. Embeddings, norms and the layers around the blocks are small and stay as they are.
    """
    path, _, leaf = name.rpartition(".")
    if leaf != "weight" or not name.startswith("layers."):
        return False
    layer = transformer.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        return False
    if layer.bias is not None:
        raise RuntimeError(f"{path} has a bias; the blocks of this model have none")
    parent, _, own = path.rpartition(".")
    setattr(transformer.get_submodule(parent), own, QuantisedLinear(weight, kind))
    return True
