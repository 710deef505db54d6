"""The frozen models of preprocessing, loaded when first needed and let go one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acestep.core.device import DeviceChoice, free_memory
from acestep.core.errors import UserError
from acestep.model import condition, loading
from acestep.model.facts import LYRIC_TOKENS
from acestep.model.vae import encode_audio
from acestep.preprocess.plan import SongPrompts

if TYPE_CHECKING:
    import numpy as np

    from acestep.model.checkpoints import Checkpoint


@dataclass(frozen=True)
class TextStates:
    """What the text encoder gives for a song: lyrics (1, Ll, TD) and one (1, Lt, TD) for each distinct text."""

    lyrics: Tensor
    texts: tuple[Tensor, ...]
    metas_cut: bool
    lyrics_cut: bool

    @property
    def facts(self) -> dict[str, Any]:
        return {"metas_cut": self.metas_cut, "lyrics_cut": self.lyrics_cut}

    def tensors(self) -> dict[str, Tensor]:
        return {"lyrics": self.lyrics, **{f"text.{number}": text for number, text in enumerate(self.texts)}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> TextStates:
        """The states that `tensors` and `facts` of a file were made from. Raises KeyError when one is missing."""
        texts = tuple(tensors[f"text.{number}"] for number in range(len(tensors) - 1))
        return cls(tensors["lyrics"], texts, bool(facts["metas_cut"]), bool(facts["lyrics_cut"]))


class Encoders:
    """VAE, text encoder and condition encoder of a checkpoint on one device. `seconds` is filled per part."""

    def __init__(self, checkpoint: Checkpoint, choice: DeviceChoice, seconds: dict[str, float]) -> None:
        self._checkpoint = checkpoint
        self._choice = choice
        self._seconds = seconds
        self._parts: dict[str, Any] = {}

    def latents(self, samples: np.ndarray, draw: str, seed: int, title: str) -> Tensor:
        """Latents (T, C) fp32 on the CPU of `samples` (2, N)."""
        vae = self._part("vae", loading.load_vae)
        with self._measured("vae", title):
            return encode_audio(vae, samples, draw, seed)

    def text_states(self, prompts: SongPrompts, title: str) -> TextStates:
        """Text encoder states of all prompts and token embeddings of the lyrics of one song."""
        text_encoder = self._part("text encoder", loading.load_text_encoder)
        with self._measured("text encoder", title):
            return TextStates(
                lyrics=condition.embed_lyrics(text_encoder, prompts.lyrics),
                texts=tuple(condition.encode_text(text_encoder, text) for text in prompts.texts),
                metas_cut=any(condition.metas_are_cut(text_encoder, text) for text in prompts.texts),
                lyrics_cut=len(text_encoder.tokenizer(prompts.lyrics)["input_ids"]) > LYRIC_TOKENS,
            )

    def condition(self, states: TextStates, title: str) -> dict[str, Tensor]:
        """`head` (Ll + 1, E) and `text.<n>` (Lt, E): what joined is the condition of generation."""
        encoder = self._part("condition encoder", loading.load_condition_encoder)
        device = self._choice.torch_device
        with self._measured("condition encoder", title):
            tensors = {"head": condition.condition_head(encoder, states.lyrics.to(device))[0]}
            for number, text in enumerate(states.texts):
                tensors[f"text.{number}"] = condition.condition_text(encoder, text.to(device))[0]
            return {name: tensor.cpu() for name, tensor in tensors.items()}

    def let_go(self) -> None:
        """Drop all loaded models and give their memory back."""
        self._parts.clear()
        free_memory()

    def _part(self, name: str, load: Any) -> Any:
        if name not in self._parts:
            with self._measured("load models", name):
                self._parts[name] = load(self._checkpoint, self._choice.dtype, self._choice.torch_device)
        return self._parts[name]

    @contextmanager
    def _measured(self, phase: str, title: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The device ran out of memory ({phase}, {title}).",
                fix="Use two passes, a smaller longest duration, or another device; finished songs are kept.",
            ) from error
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started
