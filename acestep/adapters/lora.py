"""LoRA and DoRA on the transformer's linear layers, computed by PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from acestep.adapters.peft_adapter import SLOT, PeftAdapter
from acestep.adapters.peft_format import peft_key
from acestep.adapters.specs import LoraSpec, whole_number
from acestep.model.names import module_to_original


class LoraAdapter(PeftAdapter):
    """W' = W + scale · B A, with A [rank, in] and B [out, rank]; DoRA learns the row lengths of W' beside it."""

    kind = "lora"
    name = "LoRA"
    spec: LoraSpec
    tuner_class = LoraModel
    layer_class = LoraLayer

    def __init__(self, transformer: nn.Module, modules: Sequence[str], spec: LoraSpec) -> None:
        super().__init__(transformer, modules, spec)
        cast_adapter_dtype(transformer, SLOT)
        if spec.use_dora:
            self._measure_rows()

    def _config(self, **common: Any) -> LoraConfig:
        names = {"^" + re.escape(name): module_to_original(name) for name in self.module_names}
        ranks = {name: self.spec.rank_of(original) for name, original in names.items()}
        alphas = {name: whole_number(self.spec.alpha_of(original)) for name, original in names.items()}
        return LoraConfig(
            r=self.spec.r,
            lora_alpha=whole_number(self.spec.lora_alpha),
            lora_dropout=self.spec.lora_dropout,
            use_rslora=self.spec.use_rslora,
            use_dora=self.spec.use_dora,
            rank_pattern=ranks if self.spec.rank_pattern else {},
            alpha_pattern=alphas if self.spec.alpha_pattern else {},
            **common,
        )

    def _measure_rows(self) -> None:
        """First row lengths in fp32: in the base's half precision, as PEFT measures, a new adapter would be heard."""
        for layer in self._layers.values():
            rows = layer.get_base_layer().weight.float()
            layer.lora_magnitude_vector[SLOT].weight.data = torch.linalg.norm(rows, dim=1)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self._layers.items():
            original = module_to_original(name)
            yield peft_key(original, "lora_A.weight"), layer.lora_A[SLOT].weight
            yield peft_key(original, "lora_B.weight"), layer.lora_B[SLOT].weight
            if self.spec.use_dora:
                yield peft_key(original, "lora_magnitude_vector"), layer.lora_magnitude_vector[SLOT].weight

    def _apply_strength(self) -> None:
        for name, layer in self._layers.items():
            layer.scaling[SLOT] = self.spec.scale_of(module_to_original(name)) * self.strength
            # A DoRA layer of scale 0 still has its learned row lengths, so nothing short of switching it off will do.
            layer.enable_adapters(self.strength != 0)

    def weight_delta(self, module: str) -> Tensor:
        layer = self._layers[module]
        with torch.no_grad():
            low_rank = layer.lora_B[SLOT].weight @ layer.lora_A[SLOT].weight
            delta = low_rank * self.spec.scale_of(module_to_original(module))
            if not self.spec.use_dora:
                return delta
            base = layer.get_base_layer().weight.float()
            direction = base + delta
            lengths = layer.lora_magnitude_vector[SLOT].weight / torch.linalg.norm(direction, dim=1)
            return direction * lengths[:, None] - base
