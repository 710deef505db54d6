"""LoKr for diffusers: PEFT's LoKr layers, whose sizes diffusers finds out from the tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from acestep.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from acestep.adapters.exports.opened import OpenAdapter


def lokr_entries(adapter: OpenAdapter, scale_of: Callable[[Any, dict[str, Tensor]], float]) -> dict[str, Tensor]:
    """Both factors of every module by diffusers' names, whole and with the scale multiplied in.

    diffusers reads no alpha. Split factors would have to be split by PEFT's own rule; whole ones are always taken.
    Raises a UserError for factors of sizes that diffusers cannot make out.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for module in adapter.modules:
        if len(adapter.shapes[module]) != 2:
            raise _refusal(f"{module} is a convolution")
        own = adapter.tensors_of(module)
        scale = scale_of(adapter.spec, own)
        pairs[module] = (_whole(own, "lokr_w1") * scale, _whole(own, "lokr_w2"))
    _require_one_factor({module: (tuple(w1.shape), tuple(w2.shape)) for module, (w1, w2) in pairs.items()})
    return {
        f"transformer.{module}.{name}": factor
        for module, pair in pairs.items()
        for name, factor in zip(("lokr_w1", "lokr_w2"), pair, strict=True)
    }


def _whole(own: Mapping[str, Tensor], name: str) -> Tensor:
    return own[name] if name in own else own[f"{name}_a"] @ own[f"{name}_b"]


def _require_one_factor(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """diffusers looks for one number that PEFT splits every dimension by; refuse where there is none."""
    from peft.tuners.lokr.layer import factorization

    splits = {pair for first, second in shapes.values() for pair in zip(first, second, strict=True)}
    candidates = {first[0] for first, _ in shapes.values()} | {-1}
    if not any(all(factorization(one * two, factor) == (one, two) for one, two in splits) for factor in candidates):
        raise _refusal("its factors are not split by one number")


def _refusal(why: str) -> UserError:
    return UserError(
        f"diffusers cannot hold this LoKr: {why}.", fix="Merge it into the model with acestep merge, and load that."
    )
