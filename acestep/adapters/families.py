"""The kinds of adapters, one row each. A new kind is a spec, an adapter class, a file format and a row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from acestep.adapters import lycoris_format, peft_format
from acestep.adapters.source import AdapterSource, TriggerTag
from acestep.adapters.specs import LokrSpec, LoraSpec, Spec

if TYPE_CHECKING:
    from torch import nn

    from acestep.adapters.base import Adapter


@dataclass(frozen=True)
class Family:
    """One kind of adapter: how it is described, computed and stored.

    `implementation` is the module and class of the adapter, imported when one is attached. `modules` finds what an
    adapter on disk wraps in a transformer. `metadata` and `config` make what stands beside the tensors.
    """

    kind: str
    spec: type[Spec]
    implementation: tuple[str, str]
    weights_file: str
    config_file: str
    modules: Callable[[AdapterSource, nn.Module], list[str]]
    metadata: Callable[[Any, Sequence[str], Sequence[str]], dict[str, str]]
    config: Callable[[Any, Sequence[str], TriggerTag], dict[str, Any]]

    @property
    def adapter_class(self) -> type[Adapter]:
        module, name = self.implementation
        return getattr(import_module(module), name)


FAMILIES = {
    family.kind: family
    for family in (
        Family(
            kind="lora",
            spec=LoraSpec,
            implementation=("acestep.adapters.lora", "LoraAdapter"),
            weights_file=peft_format.WEIGHTS_FILE,
            config_file=peft_format.CONFIG_FILE,
            modules=peft_format.lora_modules,
            metadata=peft_format.lora_metadata,
            config=peft_format.lora_config,
        ),
        Family(
            kind="lokr",
            spec=LokrSpec,
            implementation=("acestep.adapters.lokr", "LokrAdapter"),
            weights_file=lycoris_format.WEIGHTS_FILE,
            config_file=lycoris_format.CONFIG_FILE,
            modules=lycoris_format.lokr_modules,
            metadata=lycoris_format.lokr_metadata,
            config=lycoris_format.lokr_config,
        ),
    )
}
