"""Which linear modules of the diffusion transformer an adapter wraps, and how files name that choice.

Inside the program modules carry diffusers' names (layers.0.self_attn.to_out.0), in files the original ones
(layers.0.self_attn.o_proj).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from acestep.core.errors import UserError, did_you_mean
from acestep.model.names import module_to_original
from acestep.settings import AdapterSettings
from acestep.settings.adapter import read_layers

if TYPE_CHECKING:
    from torch import nn

ATTENTION_LINEARS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
MLP_LINEARS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ATTENTION_BLOCKS = {"both": ("self_attn", "cross_attn"), "self": ("self_attn",), "cross": ("cross_attn",)}


def linears_of_layer(settings: AdapterSettings) -> tuple[str, ...]:
    """Names inside one transformer layer: up to 4 for each attention block and 3 for the MLP."""
    names = tuple(
        f"{block}_attn.{ATTENTION_LINEARS[letter]}"
        for block in ("self", "cross")
        for letter in settings.projections_of(block)
    )
    return names + (MLP_LINEARS if settings.train_mlp else ())


EVERY_LINEAR = linears_of_layer(AdapterSettings(train_mlp=True))


def find_targets(transformer: nn.Module, settings: AdapterSettings) -> list[str]:
    """The modules to wrap, in model order, each of them there and linear.

    A transformer that does not have exactly the wanted ones is refused with the names in question.
    """
    linears = linear_modules(transformer)
    layers = _chosen_layers(settings.layers, len(transformer.layers))  # type: ignore[arg-type]  # a ModuleList
    wanted = [f"layers.{layer}.{name}" for layer in layers for name in linears_of_layer(settings)]
    there = set(wanted) & set(linears)
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"The adapter needs {len(wanted)} linear modules, this model has {len(there)} of them:"
            f" {missing[0]} is {_state_of(transformer, missing[0])}.",
            fix="Adapters attach to ACE-Step transformers that are not quantised." + did_you_mean(missing[0], linears),
            detail="Not usable: " + ", ".join(missing),
        )
    return [name for name in linears if name in there]


def _chosen_layers(text: str, count: int) -> Sequence[int]:
    chosen = sorted(read_layers(text))
    if chosen and chosen[-1] >= count:
        raise UserError(
            f'Setting "layers" names layer {chosen[-1]}; this model has {count}, counted from 0.',
            fix=f"Choose from 0-{count - 1}.",
        )
    return chosen or range(count)


def linear_modules(transformer: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer with ordinary weights, by its diffusers name, in model order."""
    from torch import nn

    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and module.weight.is_floating_point()
    }


def _state_of(transformer: nn.Module, name: str) -> str:
    module = dict(transformer.named_modules()).get(name)
    return "not there" if module is None else f"a {type(module).__name__} that cannot be adapted"


def assert_wrapped(wanted: Iterable[str], wrapped: Iterable[str]) -> None:
    """Fail when a library wrapped other modules than it was given."""
    wanted, wrapped = set(wanted), set(wrapped)
    if wanted != wrapped:
        raise AssertionError(
            f"{len(wanted)} modules were to be wrapped, {len(wrapped)} were;"
            f" left out: {sorted(wanted - wrapped)}, too many: {sorted(wrapped - wanted)}"
        )


def target_names(modules: Iterable[str], transformer: nn.Module) -> list[str]:
    """`target_modules` of a file: the shortest original names whose ends match exactly these modules.

    The leaf alone (q_proj) where every such module is wrapped, else with its block (self_attn.q_proj), else in full.
    """
    chosen = {module_to_original(name) for name in modules}
    known = [module_to_original(name) for name in wrappable_modules(transformer)]
    names: dict[str, None] = {}  # a set in order of the model
    for module in (name for name in known if name in chosen):
        parts = module.split(".")
        for length in (1, 2, len(parts)):
            end = ".".join(parts[-length:])
            if all(other in chosen for other in known if names_module(end, other)):
                names[end] = None
                break
    return sorted(names, key=lambda name: name.count("."))


def wrappable_modules(transformer: nn.Module) -> list[str]:
    """Names of all linear and convolution layers, those that carry an adapter included, without the adapter's own."""
    from torch import nn

    names: list[str] = []
    carriers: list[str] = []
    for name, module in transformer.named_modules():
        if any(name.startswith(f"{carrier}.") for carrier in carriers):
            continue
        if hasattr(module, "base_layer"):
            carriers.append(name)
            names.append(name)
        elif isinstance(module, nn.Linear | nn.Conv1d):
            names.append(name)
    return names


def names_module(target: str, module: str) -> bool:
    """Whether an entry of `target_modules` names this module: the whole name, or its end after a dot."""
    return module == target or module.endswith(f".{target}")


def modules_named(targets: Sequence[str], transformer: nn.Module) -> list[str]:
    """Diffusers names of the linear modules that the original names in `target_modules` stand for."""
    return [
        name
        for name in linear_modules(transformer)
        if any(names_module(target, module_to_original(name)) for target in targets)
    ]
