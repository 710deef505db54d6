"""The kinds of adapters, one row each. A new kind is a spec, an adapter class, a file format and a row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from acestep.adapters import lycoris_format, peft_format
from acestep.adapters.source import AdapterSource, TriggerTag
from acestep.adapters.specs import LohaSpec, LokrSpec, LoraSpec, OftSpec, Spec

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


def _peft(kind: str, spec: type[Spec], class_name: str, config: Callable[..., dict[str, Any]]) -> Family:
    return Family(
        kind=kind,
        spec=spec,
        implementation=(f"acestep.adapters.{kind}", class_name),
        weights_file=peft_format.WEIGHTS_FILE,
        config_file=peft_format.CONFIG_FILE,
        modules=peft_format.peft_modules,
        metadata=peft_format.peft_metadata,
        config=config,
    )


def _lycoris(
    kind: str,
    spec: type[Spec],
    class_name: str,
    metadata: Callable[..., dict[str, str]],
    config: Callable[..., dict[str, Any]],
) -> Family:
    return Family(
        kind=kind,
        spec=spec,
        implementation=(f"acestep.adapters.{kind}", class_name),
        weights_file=lycoris_format.weights_file(kind),
        config_file=lycoris_format.config_file(kind),
        modules=lycoris_format.lycoris_modules,
        metadata=metadata,
        config=config,
    )


FAMILIES = {
    family.kind: family
    for family in (
        _peft("lora", LoraSpec, "LoraAdapter", peft_format.lora_config),
        _lycoris("lokr", LokrSpec, "LokrAdapter", lycoris_format.lokr_metadata, lycoris_format.lokr_config),
        _lycoris("loha", LohaSpec, "LohaAdapter", lycoris_format.loha_metadata, lycoris_format.loha_config),
        _peft("oft", OftSpec, "OftAdapter", peft_format.oft_config),
    )
}
