"""Settings of the adapter: its kind, its size and the modules it touches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import field_validator, model_validator

from acestep.settings.base import Settings, knob

Projection = Literal["q", "k", "v", "o"]
PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "o")

_MODULE = re.compile(r"layers\.\d+\.((self|cross)_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)", re.ASCII)
_LAYERS = re.compile(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", re.ASCII)
HIGHEST_RANK = 512


class AdapterSettings(Settings):
    """What is trained: the kind of adapter, its size and the modules it touches."""

    adapter: Literal["lora", "lokr", "loha", "oft"] = knob("lora", "Adapter family.", group="adapter", level="basic")
    attention: Literal["both", "self", "cross"] = knob(
        "both",
        "Attention layers that get the adapter: self (sound), cross (prompt) or both.",
        group="adapter",
        level="basic",
    )
    train_mlp: bool = knob(
        False, "Adapt the MLP layers too: more capacity, more memory.", group="adapter", level="basic"
    )
    self_modules: tuple[Projection, ...] = knob(
        PROJECTIONS, "Projections of self-attention that get the adapter.", group="adapter"
    )
    cross_modules: tuple[Projection, ...] = knob(
        PROJECTIONS, "Projections of cross-attention that get the adapter.", group="adapter"
    )
    layers: str = knob(
        "", "Layers that get the adapter, counted from 0, such as 0-11,20; empty takes all.", group="adapter"
    )

    rank: int = knob(64, "LoRA rank: capacity of the adapter.", group="lora", level="basic", ge=1, le=HIGHEST_RANK)
    alpha: float = knob(128.0, "LoRA alpha: strength is alpha / rank.", group="lora", level="basic", gt=0, le=2048)
    dropout: float = knob(0.1, "Share of adapter inputs dropped in a step.", group="lora", ge=0, lt=1)
    rslora: bool = knob(False, "Rank-stabilised LoRA: strength is alpha / sqrt(rank).", group="lora")
    dora: bool = knob(False, "DoRA: learn the length of each weight row apart from its direction.", group="lora")
    rank_pattern: dict[str, int] = knob(
        {},
        "LoRA ranks of single modules, such as layers.0.self_attn.q_proj=16; alpha / rank stays as it is.",
        group="lora",
        level="expert",
    )
    alpha_pattern: dict[str, float] = knob(
        {}, "LoRA alphas of single modules, such as layers.0.self_attn.q_proj=16.", group="lora", level="expert"
    )

    lokr_dim: int = knob(
        64, "LoKr dimension of the second factor; large values store it whole.", group="lokr", ge=1, le=100_000
    )
    lokr_alpha: float = knob(
        128.0, "LoKr alpha; without effect where both factors are whole.", group="lokr", gt=0, le=100_000
    )
    lokr_factor: int = knob(
        8,
        "LoKr factor: size of the first factor, -1 for the nearest to square. Smaller is larger adapters.",
        group="lokr",
        ge=-1,
        le=64,
    )
    lokr_decompose_both: bool = knob(False, "Factorise the first LoKr matrix as well.", group="lokr", level="expert")
    lokr_tucker: bool = knob(
        False, "Tucker form for convolutions (attention and MLP layers have none).", group="lokr", level="expert"
    )
    lokr_dropout: float = knob(0.0, "Share of LoKr outputs dropped in a step.", group="lokr", ge=0, lt=1)

    loha_dim: int = knob(
        32, "LoHa dimension: two products of this rank, multiplied with each other.", group="loha", ge=1, le=512
    )
    loha_alpha: float = knob(64.0, "LoHa alpha: strength is alpha / dimension.", group="loha", gt=0, le=2048)

    oft_block_size: int = knob(
        64, "OFT block size: inputs that are rotated together. Larger is larger adapters.", group="oft", ge=2, le=1024
    )
    oft_constrained: bool = knob(False, "COFT: rotations stay within a small distance of none.", group="oft")
    oft_eps: float = knob(
        6e-5, "COFT: largest distance of all rotations of a module together.", group="oft", gt=0, le=1
    )

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _read_pairs(cls, pattern: Any) -> Any:
        """NAME=NUMBER texts, as the command line gives them, become a mapping."""
        if not isinstance(pattern, list | tuple):
            return pattern
        pairs = [text.partition("=") for text in pattern if isinstance(text, str)]
        if len(pairs) != len(pattern) or not all(sign for _, sign, _ in pairs):
            raise ValueError("write each module as NAME=NUMBER")
        if len({name for name, _, _ in pairs}) != len(pairs):
            raise ValueError("a module is named twice")
        return {name: number for name, _, number in pairs}

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _check_pattern(cls, pattern: dict[str, float]) -> dict[str, float]:
        for name, number in pattern.items():
            if not _MODULE.fullmatch(name):
                raise ValueError(f'"{name}" is no module such as layers.0.self_attn.q_proj or layers.0.mlp.up_proj')
            if not (number > 0 and (isinstance(number, float) or number <= HIGHEST_RANK)):
                raise ValueError(f"{number:g} for {name} is out of bounds")
        return pattern

    @field_validator("self_modules", "cross_modules")
    @classmethod
    def _in_order(cls, modules: tuple[Projection, ...]) -> tuple[Projection, ...]:
        return tuple(name for name in PROJECTIONS if name in modules)

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str) -> str:
        read_layers(layers)
        return layers

    @model_validator(mode="after")
    def _check_factor(self) -> AdapterSettings:
        if self.lokr_factor == 0:
            raise ValueError('setting "lokr_factor" must be -1 or at least 1')
        return self

    @model_validator(mode="after")
    def _check_modules(self) -> AdapterSettings:
        if not self.train_mlp and not any(self.projections_of(block) for block in ("self", "cross")):
            raise ValueError('settings "attention", "self_modules" and "cross_modules" leave no module to adapt')
        for name, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if pattern and self.adapter != "lora":
                raise ValueError(f'setting "{name}" needs the adapter lora, not {self.adapter}')
        return self

    def projections_of(self, block: str) -> tuple[Projection, ...]:
        """Projections of the self or cross attention that get the adapter; none where the block is left out."""
        if self.attention not in ("both", block):
            return ()
        return self.self_modules if block == "self" else self.cross_modules

    def alphas_by_module(self) -> Mapping[str, float]:
        """LoRA alphas of modules that differ: those given, and for other ranks what keeps alpha / rank.

        rsLoRA keeps alpha itself: its strength is made for one alpha at every rank.
        """
        scaled = {} if self.rslora else {name: self.alpha * r / self.rank for name, r in self.rank_pattern.items()}
        return {**scaled, **self.alpha_pattern}


def read_layers(text: str) -> frozenset[int]:
    """Numbers of layers in a text such as 0-11,20; none for an empty one. Raises ValueError with the wrong part."""
    chosen: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        match = _LAYERS.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f'"{part.strip()}" is no layer or range of layers; write them as 0-11,20')
        chosen.update(range(first, last + 1))
    return frozenset(chosen)
