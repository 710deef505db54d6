"""What LoKr and LoHa share: LyCORIS' modules on the transformer's layers, without its networks and presets."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from lycoris.logging import logger as lycoris_logger
from torch import Tensor, nn

from acestep.adapters.base import Adapter
from acestep.adapters.lycoris_format import lycoris_name
from acestep.adapters.specs import LycorisSpec
from acestep.adapters.targets import assert_wrapped


def trainable_weights(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable tensors of a LyCORIS module by their names in a file."""
    for name in module.weight_list:
        if isinstance(value := getattr(module, name, None), nn.Parameter):
            yield name, value


class LycorisAdapter(Adapter):
    """An adapter whose layers are LyCORIS modules, made one by one: its presets would be shared by all networks."""

    spec: LycorisSpec
    module_class: ClassVar[type[nn.Module]]

    def __init__(self, transformer: nn.Module, modules: Sequence[str], spec: LycorisSpec) -> None:
        super().__init__(transformer, modules, spec)
        layers = dict(transformer.named_modules())
        with _quiet_lycoris():
            self._modules = {name: self._made(name, layers[name]) for name in self.module_names}
        # Held outside the transformer, as LyCORIS does: the transformer's own weights stay a plain list.
        self.holder = nn.ModuleDict({lycoris_name(name): module for name, module in self._modules.items()})
        for module in self._modules.values():
            module.apply_to()
        self._mark_attached()
        assert_wrapped(self.module_names, (name for name, m in layers.items() if hasattr(m, "_lycoris_wrappers")))
        self.notes = self._notes()

    def _made(self, name: str, layer: nn.Module) -> Any:
        """LyCORIS' module for a layer, not yet applied to it."""
        options = self.spec.model_dump(exclude={"linear_dim", "linear_alpha"})
        module = self.module_class(
            lycoris_name(name),
            layer,
            lora_dim=self.spec.linear_dim,
            alpha=self.spec.linear_alpha,
            # a trained row length needs the whole weight; everything else works on the activations
            bypass_mode=not self.spec.weight_decompose,
            **options,
        )
        # LyCORIS makes its weights on the CPU, in the type of its own choice
        return module.to(device=layer.weight.device, dtype=torch.float32)

    def _notes(self) -> tuple[str, ...]:
        return ()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self._modules.items():
            for suffix, parameter in trainable_weights(module):
                yield f"{lycoris_name(name)}.{suffix}", parameter

    def constants(self) -> dict[str, Tensor]:
        return {f"{lycoris_name(name)}.alpha": module.alpha for name, module in self._modules.items()}

    def _apply_strength(self) -> None:
        for module in self._modules.values():
            module.multiplier = self.strength

    def _remove(self) -> None:
        for module in self._modules.values():
            module.restore()
            # LyCORIS leaves the layer's own method as an attribute; without it the layer is as it was
            del module.org_module[0].forward

    def weight_delta(self, module: str) -> Tensor:
        own = self._modules[module]
        with torch.no_grad():
            delta = own.get_weight(own.shape)
            if not own.wd:
                return delta
            base = own.org_weight.float()
            return own.apply_weight_decompose(base + delta) - base


@contextlib.contextmanager
def _quiet_lycoris() -> Iterator[None]:
    """LyCORIS logs one line for every layer that stores a factor whole; `notes` says it once."""
    level = lycoris_logger.level
    lycoris_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        lycoris_logger.setLevel(level)
