"""LyCORIS' single file with its configuration in the metadata, and a copy of it as JSON beside the file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.adapters.source import AdapterSource, Header, TriggerTag, clean_keys, read_header, target_modules
from acestep.adapters.specs import LohaSpec, LokrSpec, LycorisSpec, whole_number
from acestep.adapters.targets import ATTENTION_BLOCKS, modules_named, wrappable_modules
from acestep.core.errors import UserError
from acestep.core.paths import read_json
from acestep.model.names import module_to_original

if TYPE_CHECKING:
    from torch import nn

_SPECS: dict[str, type[LycorisSpec]] = {"lokr": LokrSpec, "loha": LohaSpec}
KINDS = tuple(_SPECS)
_PREFIX = "lycoris_"


def config_key(kind: str) -> str:
    """Where the configuration of a kind stands in the metadata of its file."""
    return f"{kind}_config"


def config_file(kind: str) -> str:
    """Name of the file with the configuration for people."""
    return f"{kind}_config.json"


def weights_file(kind: str) -> str:
    """Name of the file with the tensors."""
    return f"{kind}_weights.safetensors"


def lycoris_name(module: str) -> str:
    """LyCORIS' name of a module (diffusers path) in a file: its original path, dots made underscores."""
    return _PREFIX + module_to_original(module).replace(".", "_")


def lokr_config(spec: LokrSpec, targets: Sequence[str], tag: TriggerTag) -> dict[str, Any]:
    """lokr_config.json: what people read, with the trigger word."""
    return _for_people("lokr", spec, targets, tag) | {
        "factor": spec.factor,
        "decompose_both": spec.decompose_both,
        "use_tucker": spec.use_tucker,
        "dropout": spec.dropout,
    }


def loha_config(spec: LohaSpec, targets: Sequence[str], tag: TriggerTag) -> dict[str, Any]:
    """loha_config.json: what people read, with the trigger word."""
    return _for_people("loha", spec, targets, tag)


def _for_people(kind: str, spec: LycorisSpec, targets: Sequence[str], tag: TriggerTag) -> dict[str, Any]:
    return {
        "adapter_type": kind,
        "algo": kind,
        "linear_dim": spec.linear_dim,
        "linear_alpha": whole_number(spec.linear_alpha),
        "target_modules": list(targets),
    } | tag.to_config()


def lokr_metadata(spec: LokrSpec, targets: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """The metadata the official app rebuilds the network from. `modules` are the wrapped ones, diffusers names."""
    own = {
        "factor": spec.factor,
        "decompose_both": spec.decompose_both,
        "full_matrix": spec.full_matrix,
        "bypass_mode": False,
        "unbalanced_factorization": spec.unbalanced_factorization,
    }
    return _metadata("lokr", spec, own, targets, modules)


def loha_metadata(spec: LohaSpec, targets: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """The metadata Side-Step writes: LoHa has no factor, which it states all the same."""
    return _metadata("loha", spec, {"factor": -1}, targets, modules)


def _blocks(modules: Sequence[str]) -> dict[str, Any]:
    """Beyond LyCORIS: what bare names in target_modules stand for."""
    blocks = [kind for kind in ("self", "cross") if any(f".{kind}_attn." in name for name in modules)]
    return {
        "attention_type": "both" if len(blocks) == 2 else "".join(blocks) or None,
        "target_mlp": any(".mlp." in name for name in modules),
    }


def _metadata(
    kind: str, spec: LycorisSpec, own: dict[str, Any], targets: Sequence[str], modules: Sequence[str]
) -> dict[str, str]:
    config = {
        "linear_dim": spec.linear_dim,
        "linear_alpha": whole_number(spec.linear_alpha),
        "use_tucker": spec.use_tucker,
        "use_scalar": False,  # a learned scalar is multiplied into the first factor when it is stored
        "weight_decompose": spec.weight_decompose,
        "rs_lora": spec.rs_lora,
        "target_modules": list(targets),
        **own,
        **_blocks(modules),
    }
    return {"adapter_type": kind, "algo": kind, "format": "lycoris", config_key(kind): json.dumps(config)}


def read_lycoris(weights: Path, kind: str) -> AdapterSource:
    """Read a LoKr or LoHa file, as LyCORIS, the official app or Side-Step writes it."""
    header = read_header(weights)
    beside = weights.parent / config_file(kind)
    described = beside if beside.is_file() else weights
    config = read_json(beside, "the adapter's configuration") if beside.is_file() else {}
    tag = TriggerTag.from_config(config, beside)
    stated = _from_metadata(header, weights, config_key(kind))
    if not config and stated is None:
        raise UserError(
            f'{weights} has no "{config_key(kind)}", neither in its metadata nor in a {config_file(kind)} beside it.',
            fix="Take the adapter's original files.",
        )
    algorithm = header.metadata.get("algo", config.get("algo", kind))
    if algorithm != kind:
        raise UserError(f"{weights} is a {algorithm} adapter, not {kind} as its name says.", fix="Rename it.")
    config = {**config, **(stated or {})}  # the metadata is what other programs go by
    return AdapterSource(
        kind=kind,
        path=weights,
        weights=weights,
        spec=_SPECS[kind].read(config, str(described)),
        targets=target_modules(config, described),
        tag=tag,
        header=header,
        keys=clean_keys(header, weights, lambda key: key.replace("__orig_mod_", "_")),
        attention=attention if isinstance(attention := config.get("attention_type"), str) else None,
    )


def lycoris_modules(source: AdapterSource, transformer: nn.Module) -> list[str]:
    """The modules (diffusers names) the file must have, or has beyond that, tensors for.

    Trainers that leave LyCORIS' default preset on wrap and store every linear and convolution layer, so modules
    beyond `target_modules` are normal. Which attention blocks a bare name (q_proj) stands for is not always stated;
    but whatever is adapted in one layer is adapted in all, unless modules are named one by one.
    """
    known = wrappable_modules(transformer)
    in_file = {name.partition(".")[0] for name in source.keys}
    found = {name for name in known if lycoris_name(name) in in_file}
    targets = source.targets or ()
    if any(re.match(r"layers\.\d+\.", target) for target in targets):
        return [name for name in known if name in found | set(modules_named(targets, transformer))]
    kinds = {_without_layer(name) for name in found}
    for target in targets:
        if "." in target or source.attention is not None:
            kinds |= {_without_layer(name) for name in modules_named([target], transformer) if _is_meant(name, source)}
    return [name for name in known if name in found or _without_layer(name) in kinds]


def _is_meant(module: str, source: AdapterSource) -> bool:
    blocks = ATTENTION_BLOCKS.get(source.attention or "both", ())
    return "_attn." not in module or any(f".{block}." in module for block in blocks)


def _without_layer(name: str) -> str:
    return re.sub(r"^layers\.\d+\.", "layers.", name)


def lycoris_kind(file: Path, header: Header) -> str | None:
    """The kind a safetensors file of any name says it is, by its metadata or its name."""
    return next(
        (kind for kind in KINDS if config_key(kind) in header.metadata or file.name == weights_file(kind)), None
    )


def _from_metadata(header: Header, weights: Path, key: str) -> dict[str, Any] | None:
    text = header.metadata.get(key)
    if not text:
        return None
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f'"{key}" in the metadata of {weights} is not valid JSON.', fix="Take the adapter's original files."
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f'"{key}" in the metadata of {weights} must be a JSON object.',
            fix="Take the adapter's original files.",
        )
    return config
