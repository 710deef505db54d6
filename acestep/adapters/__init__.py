"""Adapters on the diffusion transformer: attaching, saving, loading. Importing this needs no torch."""

from acestep.adapters.attaching import attach
from acestep.adapters.base import Adapter, attached_adapter
from acestep.adapters.files import (
    AdapterInfo,
    find_adapter,
    load_adapter,
    read_adapter_info,
    read_adapter_tensors,
    save_adapter,
    write_adapter_files,
)
from acestep.adapters.source import TriggerTag

__all__ = [
    "Adapter",
    "AdapterInfo",
    "TriggerTag",
    "attach",
    "attached_adapter",
    "find_adapter",
    "load_adapter",
    "read_adapter_info",
    "read_adapter_tensors",
    "save_adapter",
    "write_adapter_files",
]
