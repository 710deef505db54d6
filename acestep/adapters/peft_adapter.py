"""What LoRA and OFT share: PEFT's layers in place of the transformer's own, put there by PEFT's tuner."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from acestep.adapters.base import Adapter
from acestep.adapters.specs import Spec
from acestep.adapters.targets import assert_wrapped

SLOT = "default"
"""Name under which PEFT keeps the one adapter."""


class PeftAdapter(Adapter):
    """An adapter of PEFT's layers. The tuner alone places them: a PeftModel around it would change forward()."""

    tuner_class: ClassVar[type]
    layer_class: ClassVar[type]

    def __init__(self, transformer: nn.Module, modules: Sequence[str], spec: Spec) -> None:
        super().__init__(transformer, modules, spec)
        config = self._config(
            bias="none",
            # PEFT's wrapper for a task would send the model arguments it does not have
            task_type=None,
            # an expression for exactly these names: a list would match by their ends
            target_modules="|".join(re.escape(name) for name in self.module_names),
        )
        self._tuner = self.tuner_class(transformer, config, SLOT)
        layers = {name: module for name, module in transformer.named_modules() if isinstance(module, self.layer_class)}
        self._mark_attached()
        assert_wrapped(self.module_names, layers)
        self._layers: dict[str, Any] = {name: layers[name] for name in self.module_names}

    @abstractmethod
    def _config(self, **common: Any) -> Any:
        """PEFT's configuration of this adapter, with what all have in common."""

    def _remove(self) -> None:
        self._tuner.unload()
