"""How each program reads an adapter file, restated from its published behaviour.

Nothing here uses the code that writes files or trains adapters, so agreement between the two means something. A
program is a function from a file's tensors to a `Reading`. Modules carry their original names; `shapes` are the sizes
of the weights of the model that the file is meant for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from acestep.adapters.exports.reading import (
    HADAMARD,
    KRONECKER,
    NeedsWeights,
    Reading,
    Tensors,
    hadamard,
    kronecker,
    low_rank,
    rows_of,
)

Shapes = Mapping[str, tuple[int, ...]]
WeightOf = Callable[[str], Tensor]


def shapes_in(tensors: Tensors, modules: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Weight shapes of those of `modules` (original names) that a file of any program has tensors for."""
    shapes: dict[str, tuple[int, ...]] = {}
    for module in modules:
        names = (f".{module}.", f".{_diffusers_name(module)}.", f"_{module.replace('.', '_')}.")
        own = {key.rpartition(name)[2]: t for name in names for key, t in tensors.items() if name in f".{key}"}
        try:
            shape = _shape_of(own)
        except (IndexError, ValueError):  # tensors of too few dimensions, or too many
            shape = None
        if shape:
            shapes[module] = shape
    return shapes


def _shape_of(own: Tensors) -> tuple[int, ...] | None:
    for up, down in _COMFYUI_PAIRS:
        if up in own and down in own:
            return (own[up].shape[0], own[down].shape[1])
    if "diff" in own:
        return tuple(own["diff"].shape)
    if "hada_w1_a" in own and "hada_w1_b" in own:
        return (own["hada_w1_a"].shape[0], own["hada_w1_b"].shape[1])
    sizes = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in own:
            sizes.append(tuple(own[name].shape))
        elif f"{name}_a" in own and f"{name}_b" in own:
            sizes.append((own[f"{name}_a"].shape[0], own[f"{name}_b"].shape[1]))
    if len(sizes) != 2:
        return None
    (a, c), (b, d, *kernel) = sizes
    return (a * b, c * d, *kernel)


# ComfyUI ----------------------------------------------------------------------------------------------------------

_COMFYUI_PAIRS = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
)


def comfyui(tensors: Tensors, shapes: Shapes) -> Reading:
    """ComfyUI's key map of an ACE-Step 1.5 model and its rules of scale (comfy/lora.py, comfy/weight_adapter).

    LoRA and LoHa count alpha / rank, or 1 without alpha; LoKr alpha / inner rank where a factor is split, else 1.
    Keys that lead nowhere are left out with no more than a line in the log.
    """
    reading = Reading("ComfyUI")
    for module, shape in shapes.items():
        flat = module.replace(".", "_")
        for stem in (
            f"diffusion_model.decoder.{module}",
            f"lora_unet_decoder_{flat}",
            f"base_model.model.{module}",
            f"lycoris_{flat}",
        ):
            _comfyui_module(reading, tensors, stem, module, shape)
    return reading


def _comfyui_module(reading: Reading, tensors: Tensors, stem: str, module: str, shape: tuple[int, ...]) -> None:
    def get(name: str) -> Tensor | None:
        return tensors.get(f"{stem}.{name}")

    alpha_tensor = get("alpha")
    if alpha_tensor is not None and alpha_tensor.numel() != 1:
        reading.faults.append(f"{module}: alpha is no single number")
        return
    alpha = None if alpha_tensor is None else float(alpha_tensor)
    extra = [f"{stem}.alpha"] if alpha_tensor is not None else []
    if get("dora_scale") is not None or get("lora_magnitude_vector") is not None:
        reading.faults.append(f"{module}: learned lengths are computed differently from training")
    for up_name, down_name in _COMFYUI_PAIRS:
        up, down = get(up_name), get(down_name)
        if up is not None and down is not None:
            scale = 1.0 if alpha is None else alpha / rows_of(down)
            reading.add_made(
                module, [f"{stem}.{up_name}", f"{stem}.{down_name}", *extra], scale, shape, low_rank, up, down
            )
            return
    parts = {name: part for name in KRONECKER if (part := get(name)) is not None}
    if parts:
        inner = next((rows_of(parts[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), None)
        scale = 1.0 if alpha is None or inner is None else alpha / inner
        keys = [f"{stem}.{name}" for name in parts]
        reading.add_made(module, [*keys, *extra], scale, shape, kronecker(parts), *parts.values())
        return
    factors = [part for name in HADAMARD if (part := get(name)) is not None]
    if len(factors) == len(HADAMARD):
        scale = 1.0 if alpha is None else alpha / rows_of(factors[1])
        keys = [f"{stem}.{name}" for name in HADAMARD]
        reading.add_made(module, [*keys, *extra], scale, shape, hadamard, *factors)
        return
    difference = get("diff")
    if difference is not None:
        if difference.shape != shape:
            reading.faults.append(f"{module}: the difference is {list(difference.shape)}, the weight {list(shape)}")
            return
        reading.add(module, [f"{stem}.diff"], 1.0, difference.float)


# the official app -------------------------------------------------------------------------------------------------


def official_peft(tensors: Tensors, config: Mapping[str, Any], shapes: Shapes, weight_of: WeightOf | None) -> Reading:
    """The official app's PEFT folders: PEFT wraps what target_modules name and loads keys by the modules' paths.

    scale = alpha / r or alpha / sqrt(r), with the patterns' values where a pattern ends a module's name. DoRA divides
    the rows of weight + difference by their lengths and multiplies with the learned ones; that needs the weights.
    """
    reading = Reading("ACE-Step app (PEFT)")
    if not config.get("peft_type"):
        reading.faults.append('adapter_config.json has no "peft_type"')
    targets = config.get("target_modules")
    if isinstance(targets, str) and not _is_expression(targets):
        reading.faults.append('"target_modules" is no expression')
        return reading
    if config.get("peft_type") == "OFT":
        _official_oft(reading, tensors, config, shapes, weight_of)
        return reading
    for module, shape in shapes.items():
        if not _peft_targets(config.get("target_modules"), module):
            continue
        stem = f"base_model.model.{module}."
        names = [f"{stem}lora_A.weight", f"{stem}lora_B.weight"]
        if not all(name in tensors for name in names):
            reading.faults.append(f"{module}: PEFT wraps it and finds no tensors for it")
            continue
        down, up = (tensors[name] for name in names)
        rank = _peft_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _peft_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        if down.shape != (rank, shape[1]) or up.shape != (shape[0], rank):
            reading.faults.append(f"{module}: the tensors have another shape than PEFT makes")
            continue
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not config.get("use_dora"):
            reading.add_made(module, names, scale, shape, low_rank, up, down)
            continue
        lengths = tensors.get(f"{stem}lora_magnitude_vector")
        if lengths is None or lengths.shape != shape[:1]:
            reading.faults.append(f"{module}: the learned lengths are missing, or not those of its rows")
            continue
        delta = _dora(module, up, down, scale, lengths, weight_of)
        reading.add(module, [*names, f"{stem}lora_magnitude_vector"], scale, delta)
    return reading


def _official_oft(
    reading: Reading, tensors: Tensors, config: Mapping[str, Any], shapes: Shapes, weight_of: WeightOf | None
) -> None:
    """PEFT's OFT: blocks of the inputs, as large as configured or the nearest size that divides, turned by a series."""
    for module, shape in shapes.items():
        if not _peft_targets(config.get("target_modules"), module):
            continue
        name = f"base_model.model.{module}.oft_R.weight"
        if name not in tensors:
            reading.faults.append(f"{module}: PEFT wraps it and finds no tensors for it")
            continue
        weights = tensors[name].float()
        count, size = _oft_blocks(config, shape[1])
        if weights.shape != (count, size * (size - 1) // 2) or not config.get("use_cayley_neumann"):
            reading.faults.append(f"{module}: the rotations have another size or rule than PEFT makes")
            continue
        limit = config.get("eps", 6e-5) / math.sqrt(len(weights)) if config.get("coft") else None
        reading.add(module, [name], 1.0, _turned(module, weights, size, limit, weight_of))


def _oft_blocks(config: Mapping[str, Any], inputs: int) -> tuple[int, int]:
    """Number and size of the blocks that PEFT makes: what is configured, or the nearest that divides the inputs."""
    wanted = config.get("r") or config.get("oft_block_size") or 32
    near = min((n for n in range(1, inputs + 1) if inputs % n == 0), key=lambda n: (abs(n - wanted), n))
    return (near, inputs // near) if config.get("r") else (inputs // near, near)


def _turned(
    module: str, weights: Tensor, size: int, limit: float | None, weight_of: WeightOf | None
) -> Callable[[], Tensor]:
    def delta() -> Tensor:
        if weight_of is None:
            raise NeedsWeights
        skew = torch.zeros(len(weights), size, size)
        above = torch.ones(size, size).triu(1).bool()
        skew[:, above] = weights
        skew = skew - skew.mT
        if limit is not None:  # COFT: no block is longer than this
            length = skew.flatten(1).norm(dim=1)[:, None, None]
            skew = torch.where(length > limit, skew * (limit / length), skew)
        turn = skew @ (2 * torch.eye(size) + skew @ (2 * torch.eye(size) + skew @ (2 * torch.eye(size) + skew)))
        weight = weight_of(module)
        return weight @ torch.block_diag(*turn).T

    return delta


def _dora(
    module: str, up: Tensor, down: Tensor, scale: float, lengths: Tensor, weight_of: WeightOf | None
) -> Callable[[], Tensor]:
    def delta() -> Tensor:
        if weight_of is None:
            raise NeedsWeights
        weight = weight_of(module)
        turned = weight + scale * low_rank(up.float(), down.float())
        return turned / turned.square().sum(dim=1, keepdim=True).sqrt() * lengths.float()[:, None] - weight

    return delta


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _peft_targets(targets: Any, module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets or ())


def _peft_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def official_lokr(tensors: Tensors, metadata: Mapping[str, str], shapes: Shapes) -> Reading:
    """The official app's LoKr files: the network is rebuilt from `lokr_config`, then the tensors are loaded into it.

    Sizes and scale come from the configuration alone; a tensor of another shape is an error there. The alpha in the
    file is loaded and not used.
    """
    reading = Reading("ACE-Step app (LyCORIS)")
    try:
        config = json.loads(metadata.get("lokr_config", ""))
    except json.JSONDecodeError:
        reading.faults.append("the metadata has no lokr_config")
        return reading
    for module, shape in shapes.items():
        stem = f"lycoris_{module.replace('.', '_')}"
        if not any(name.startswith(f"{stem}.") for name in tensors):
            continue  # the app makes such a module too, and it does nothing
        expected = lokr_shapes(config, shape)
        keys = [f"{stem}.{name}" for name in expected]
        parts = {name: tensors[key] for name, key in zip(expected, keys, strict=True) if key in tensors}
        wrong = [name for name, size in expected.items() if name not in parts or parts[name].shape != size]
        if f"{stem}.alpha" in tensors and tensors[f"{stem}.alpha"].numel() != 1:
            wrong.append("alpha")
        if wrong:
            reading.faults.append(f"{module}: {wrong[0]} does not fit lokr_config")
            continue
        whole = "lokr_w1" in expected and "lokr_w2" in expected
        rank = config["linear_dim"]
        alpha = rank if whole else config["linear_alpha"] or rank
        scale = alpha / (math.sqrt(rank) if config.get("rs_lora") else rank)
        keys.append(f"{stem}.alpha")
        if config.get("weight_decompose"):
            reading.add(module, [*keys, f"{stem}.dora_scale"], scale, _not_restated)
        else:
            reading.add_made(module, keys, scale, shape, kronecker(parts), *parts.values())
    return reading


def _not_restated() -> Tensor:
    raise NeedsWeights


def lokr_shapes(config: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors LyCORIS makes for a weight [out, in] or [out, in, kernel]."""
    rank, factor, kernel = config["linear_dim"], config.get("factor") or -1, shape[2:]
    a, b = split_dimension(shape[0], factor)
    if config.get("unbalanced_factorization"):
        a, b = b, a
    c, d = split_dimension(shape[1], factor)
    found: dict[str, tuple[int, ...]] = {}
    whole = bool(config.get("full_matrix"))
    if config.get("decompose_both") and rank < max(a, c) / 2 and not whole:
        found |= {"lokr_w1_a": (a, rank), "lokr_w1_b": (rank, c)}
    else:
        found["lokr_w1"] = (a, c)
    if rank < max(b, d) / 2 and not whole:
        found |= {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * math.prod(kernel))}
    else:
        found["lokr_w2"] = (b, d, *kernel)
    return found


def split_dimension(size: int, factor: int) -> tuple[int, int]:
    """LyCORIS' two factors of a dimension, the smaller first: `factor` where it divides, else the nearest to square
    whose smaller one does not exceed it."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = size if factor < 0 else factor
    smaller = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and d <= largest)
    return smaller, size // smaller


# diffusers --------------------------------------------------------------------------------------------------------

_DIFFUSERS_LEAVES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}


def _diffusers_name(module: str) -> str:
    if module == "proj_in.1":
        return "proj_in_conv"
    head, _, leaf = module.rpartition(".")
    return f"{head}.{_DIFFUSERS_LEAVES.get(leaf, leaf)}" if head else leaf


def diffusers(tensors: Tensors, shapes: Shapes) -> Reading:
    """AceStepPipeline.load_lora_weights of diffusers 0.42.1, and load_lora_adapter of its transformer for LoKr.

    Only keys below `transformer.` count; a scale is read from nowhere, so it is 1; learned lengths are dropped.
    """
    is_lokr = any(".lokr_" in name for name in tensors)
    reading = Reading("diffusers (load_lora_adapter)" if is_lokr else "diffusers (load_lora_weights)")
    for module, shape in shapes.items():
        stem = f"transformer.{_diffusers_name(module)}"
        names = [
            f"{stem}.{part}" for part in (("lokr_w1", "lokr_w2") if is_lokr else ("lora_A.weight", "lora_B.weight"))
        ]
        if not all(name in tensors for name in names):
            continue
        first, second = (tensors[name] for name in names)
        if len(shape) != 2:
            reading.faults.append(f"{module}: adapters of convolutions are not read")
        elif is_lokr:
            reading.add_made(module, names, 1.0, shape, kronecker(("lokr_w1", "lokr_w2")), first, second)
        else:
            reading.add_made(module, names, 1.0, shape, low_rank, second, first)
    if any("lora_magnitude" in name or "dora_scale" in name for name in tensors):
        reading.faults.append("learned lengths are left out")
    return reading
