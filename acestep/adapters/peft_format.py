"""PEFT's adapter folder: adapter_config.json beside adapter_model.safetensors, in original module names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.adapters.source import AdapterSource, TriggerTag, clean_keys, read_header, target_modules
from acestep.adapters.specs import LoraSpec, OftSpec, Spec, whole_number
from acestep.adapters.targets import linear_modules, modules_named
from acestep.core.errors import UserError
from acestep.core.paths import read_json
from acestep.model.names import module_to_original

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."

_CHANGES_THE_MODEL = (
    "alora_invocation_tokens",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Options of PEFT that change what an adapter does and that no ACE-Step trainer uses."""

_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base model's weights alone (PiSSA, OLoRA and others do not)."""

_SPECS: dict[str, tuple[str, type[Spec]]] = {"LORA": ("lora", LoraSpec), "OFT": ("oft", OftSpec)}
"""Our kind and its spec for each `peft_type`."""

_CAYLEY_VERSION = "0.18.0"
"""First version of PEFT that computes OFT as it is computed here; it asks for a version beside these weights."""


def peft_key(original: str, tensor: str) -> str:
    """Name in the file of a module's tensor: lora_A.weight, lora_B.weight, lora_magnitude_vector, oft_R.weight."""
    return f"{_PREFIX}{original}.{tensor}"


def peft_metadata(spec: Spec, targets: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Metadata of the weights file: PEFT keeps everything in the configuration."""
    return {"format": "pt"}


def lora_config(spec: LoraSpec, targets: Sequence[str], tag: TriggerTag) -> dict[str, Any]:
    """The fields readers need. PEFT's own dump also names the diffusers class and every option of its version."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": spec.r,
        "lora_alpha": whole_number(spec.lora_alpha),
        "lora_dropout": spec.lora_dropout,
        "bias": "none",
        "target_modules": list(targets),
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
    }
    if spec.rank_pattern:
        config["rank_pattern"] = dict(spec.rank_pattern)
    if spec.alpha_pattern:
        config["alpha_pattern"] = {key: whole_number(value) for key, value in spec.alpha_pattern.items()}
    return config | tag.to_config()


def oft_config(spec: OftSpec, targets: Sequence[str], tag: TriggerTag) -> dict[str, Any]:
    """The fields readers of an OFT adapter need."""
    return {
        "peft_type": "OFT",
        "task_type": "FEATURE_EXTRACTION",
        "peft_version": _CAYLEY_VERSION,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        **spec.model_dump(),
        "target_modules": list(targets),
    } | tag.to_config()


def read_peft(folder: Path) -> AdapterSource:
    """Read a PEFT folder, as PEFT, the official app or Side-Step writes it."""
    config_file = folder / CONFIG_FILE
    config = read_json(config_file, "the adapter's configuration")
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise UserError(f'{config_file} has no "peft_type".', fix="Take the adapter's original files.")
    if kind not in _SPECS:
        raise UserError(
            f"{folder} is a {kind} adapter; this program reads LoRA, DoRA, OFT, LoKr and LoHa.",
            fix="Use one of these.",
        )
    _refuse_unknown_mathematics(config, config_file)
    own_kind, spec = _SPECS[kind]
    # An expression instead of a list is left alone: the tensors say which modules there are.
    names = None if isinstance(config.get("target_modules"), str) else target_modules(config, config_file)
    weights = folder / WEIGHTS_FILE
    header = read_header(weights)
    return AdapterSource(
        kind=own_kind,
        path=folder,
        weights=weights,
        spec=spec.read(config, str(config_file)),
        targets=names,
        tag=TriggerTag.from_config(config, config_file),
        header=header,
        keys=clean_keys(header, weights, _clean),
    )


def peft_modules(source: AdapterSource, transformer: nn.Module) -> list[str]:
    """The modules (diffusers names) PEFT would wrap for this folder; without a list, those the file has tensors for."""
    if source.targets is not None:
        return modules_named(source.targets, transformer)
    found = {module_of(name) for name in source.keys}
    return [name for name in linear_modules(transformer) if module_to_original(name) in found]


def module_of(name: str) -> str:
    """Original name of the module that a tensor belongs to."""
    return re.split(r"\.(?:lora|oft)_", name.removeprefix(_PREFIX), maxsplit=1)[0]


def _clean(key: str) -> str:
    """Trainers that save the live module's state leave PEFT's adapter name, or a compiler's prefix, in the keys."""
    key = key.replace("._orig_mod.", ".").replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    key = key.replace(".default.", ".").removesuffix(".default")
    return key if key.startswith(_PREFIX) else _PREFIX + key


def _refuse_unknown_mathematics(config: dict[str, Any], source: Path) -> None:
    used = [name for name in _CHANGES_THE_MODEL if config.get(name)]
    if config.get("bias", "none") not in (None, "none"):
        used.append("bias")
    if config["peft_type"] == "OFT" and _version(config.get("peft_version")) < _version(_CAYLEY_VERSION):
        used.append("use_cayley_neumann")  # computed otherwise by older versions
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        used.append("init_lora_weights")
    if used:
        raise UserError(
            f'{source} uses PEFT\'s option "{used[0]}", which this program does not apply.',
            fix="Merge that adapter with the program it was made with.",
        )


def _version(text: Any) -> tuple[int, ...]:
    """The leading numbers of a version; nothing for one that is not stated."""
    return tuple(int(part) for part in re.findall(r"\d+", str(text or ""))[:2])
