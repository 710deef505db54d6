"""The golden vectors: reference inputs and outputs of the original implementation, on tiny models.

`ACESTEP_GOLDEN=DIR` runs the same tests on another folder of this layout: one model's folder, or a folder of several.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import (
    load_audio_token_detokenizer,
    load_audio_tokenizer,
    load_condition_encoder,
    load_silence_latent,
    load_transformer,
)

OWN = Path(__file__).parent / "data"
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
"""Of everything but sampling runs, fp32 on the CPU."""


@dataclass(frozen=True)
class GoldenModel:
    """One model folder with its vectors; parts are loaded by this project's own code, in fp32, when first asked for."""

    folder: Path
    cache: dict[str, dict[str, Tensor]] = field(default_factory=dict, compare=False)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return resolve_checkpoint(self.folder, needs=())

    @cached_property
    def transformer_as_loaded(self) -> Any:
        return load_transformer(self.checkpoint, torch.float32, "cpu")

    @cached_property
    def transformer(self) -> Any:
        """The transformer with the sinusoid frequencies rounded as where the vectors were made."""
        transformer = load_transformer(self.checkpoint, torch.float32, "cpu")
        case = self.cases("dit_decoder")[0]

        def deviation(frequencies: Tensor) -> float:
            transformer.time_embed.time_sinusoid = Sinusoid(frequencies)
            with torch.no_grad():
                temb = transformer.time_embed(case["timestep"])[0]
            return float((temb - case["time_embed.temb"]).square().sum())

        best = min(roundings(transformer.time_embed.in_channels // 2), key=deviation)
        for embedder in (transformer.time_embed, transformer.time_embed_r):
            embedder.time_sinusoid = Sinusoid(best)
        return transformer

    @cached_property
    def condition_encoder(self) -> Any:
        return load_condition_encoder(self.checkpoint, torch.float32, "cpu")

    @cached_property
    def tokenizer(self) -> Any:
        return load_audio_tokenizer(self.checkpoint, torch.float32, "cpu")

    @cached_property
    def detokenizer(self) -> Any:
        return load_audio_token_detokenizer(self.checkpoint, torch.float32, "cpu")

    @cached_property
    def silence(self) -> Tensor:
        return load_silence_latent(self.checkpoint)

    def vectors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one file of vectors."""
        if name not in self.cache:
            self.cache[name] = load_file(self.folder / f"{name}.safetensors")
        return self.cache[name]

    def cases(self, name: str) -> list[dict[str, Tensor]]:
        """The tensors of a file whose names begin with case0., case1., … by case."""
        vectors = self.vectors(name)
        numbers = sorted({int(key.split(".")[0].removeprefix("case")) for key in vectors})
        return [
            {key.split(".", 1)[1]: value for key, value in vectors.items() if key.startswith(f"case{number}.")}
            for number in numbers
        ]

    def conditions(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Packed condition and its mask for the text, lyric and reference inputs of a file."""
        with torch.no_grad():
            return self.condition_encoder(
                text_hidden_states=inputs["text_hidden_states"],
                text_attention_mask=inputs["text_attention_mask"],
                lyric_hidden_states=inputs["lyric_hidden_states"],
                lyric_attention_mask=inputs["lyric_attention_mask"],
                refer_audio_acoustic_hidden_states_packed=inputs["refer_audio"],
                refer_audio_order_mask=inputs["refer_audio_order_mask"],
            )


class Sinusoid(nn.Module):
    """[cos | sin] of the scaled timestep times fixed frequencies.  (B,) → (B, 2 · frequencies)."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def roundings(count: int) -> list[Tensor]:
    """The frequencies 10000^(-i / count) in fp32, with the last bit as several machines round it.

    Timesteps reach 1000, so one unit in the last place of a frequency moves its angle by up to 6e-5 and a velocity by
    up to 1e-5, the whole tolerance. The vectors' own rounding shows in the time embedding they contain.
    """
    exponents = -math.log(10_000) * torch.arange(count, dtype=torch.float32) / count
    nearest = exponents.double().exp().float()
    elsewhere = nearest.clone()
    if count > 44:  # where the committed vectors were made, these two come out one unit higher
        elsewhere[[13, 44]] = torch.nextafter(nearest[[13, 44]], torch.tensor(2.0))
    return [exponents.exp(), nearest, elsewhere]


def golden_folders() -> list[Path]:
    """The model folders under test: those given by ACESTEP_GOLDEN, else the committed ones."""
    root = Path(os.environ.get("ACESTEP_GOLDEN") or OWN)
    if (root / "config.json").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/config.json"))
