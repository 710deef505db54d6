"""OFT on the transformer's linear layers: PEFT's layers, with rotations that stay exact in half precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import OFTConfig
from peft.tuners.oft import OFTModel
from peft.tuners.oft.layer import OFTLayer, OFTRotationModule
from torch import Tensor, nn

from acestep.adapters.peft_adapter import SLOT, PeftAdapter
from acestep.adapters.peft_format import peft_key
from acestep.adapters.specs import OftSpec
from acestep.core.errors import UserError
from acestep.model.names import module_to_original


class Rotation(OFTRotationModule):
    """PEFT's rotation of blocks of the inputs, computed in fp32 as what it adds to them.

    In half precision a rotation near none would be lost beside the ones of its diagonal. COFT's bound is put on the
    weights themselves in training, as PEFT does; a pass without training leaves them as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> the rotated inputs, in the type of x."""
        turn = self.turn().to(x.dtype)
        blocks = x.reshape(*x.shape[:-1], -1, self.block_size)
        added = torch.einsum("...rk,rkc->...rc", blocks, turn.expand(blocks.shape[-2], -1, -1))
        return (blocks + added).reshape(x.shape).to(x.dtype)

    def turn(self) -> Tensor:
        """R - I, fp32 [blocks, size, size], or one block for all of them."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self.weight
            if self.coft:
                with torch.no_grad():
                    bounded = self._project_batch(weight, eps=self.eps)
                    if self.training:
                        weight.copy_(bounded)
                    excess = bounded - weight
                weight = weight + excess
            rotation = self._cayley_batch(
                weight, self.block_size, self.use_cayley_neumann, self.num_cayley_neumann_terms
            )
            return rotation - torch.eye(self.block_size, device=weight.device, dtype=weight.dtype)


class OftAdapter(PeftAdapter):
    """y = W R x, where R turns blocks of the inputs: R = (I + Q)(I - Q)⁻¹ with Q skew, as a short series of Q."""

    kind = "oft"
    name = "OFT"
    spec: OftSpec
    tuner_class = OFTModel
    layer_class = OFTLayer

    def __init__(self, transformer: nn.Module, modules: Sequence[str], spec: OftSpec) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on block sizes that do not divide a width: `notes` says it once
            super().__init__(transformer, modules, spec)
        for layer in self._layers.values():
            layer.oft_R[SLOT] = self._rotation(layer.oft_R[SLOT])
            layer.cast_input_dtype_enabled = False
        self.train(transformer.training)
        self.notes = self._notes()

    def _config(self, **common: Any) -> OFTConfig:
        return OFTConfig(**self.spec.model_dump(), **common)

    def _rotation(self, made: OFTRotationModule) -> Rotation:
        weight = made.weight
        rotation = Rotation(
            made.r,
            made.n_elements,
            made.block_size,
            made.in_features,
            coft=made.coft,
            eps=made.eps,
            block_share=made.block_share,
            use_cayley_neumann=made.use_cayley_neumann,
            num_cayley_neumann_terms=made.num_cayley_neumann_terms,
        ).to(device=weight.device)
        rotation.weight = nn.Parameter(weight.detach().to(torch.float32))
        return rotation

    def _notes(self) -> tuple[str, ...]:
        wanted = self.spec.oft_block_size
        others = [size for layer in self._layers.values() if (size := layer.oft_block_size[SLOT]) != wanted]
        if not wanted or not others:
            return ()
        sizes = ", ".join(str(size) for size in sorted(set(others)))
        return (
            f"OFT block size {wanted} does not divide the inputs of {len(others)} of {len(self._layers)} modules; they"
            f" take the nearest that does ({sizes}).",
        )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self._layers.items():
            yield peft_key(module_to_original(name), "oft_R.weight"), layer.oft_R[SLOT].weight

    def set_strength(self, strength: float) -> None:
        """Only 1 (as trained) and 0 (off): part of a rotation is another rotation, not a share of the difference."""
        if strength not in (0, 1):
            raise UserError(f"An OFT adapter has strength 1 or 0, not {strength:g}.", fix="Choose one of them.")
        super().set_strength(strength)

    def _apply_strength(self) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(self.strength != 0)

    def weight_delta(self, module: str) -> Tensor:
        layer = self._layers[module]
        with torch.no_grad():
            weight = layer.get_base_layer().weight.float()
            turn = layer.oft_R[SLOT].turn()
            blocks = weight.reshape(weight.shape[0], -1, turn.shape[-1])
            # y = W (x R)ᵀ: the rows of W are turned by the transpose
            delta = torch.einsum("orc,rkc->ork", blocks, turn.expand(blocks.shape[1], -1, -1))
            return delta.reshape(weight.shape)
