"""The frozen models of preprocessing, loaded when first needed and let go one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from acestep.core.device import DeviceChoice, free_memory
from acestep.model import condition, loading
from acestep.model.vae import encode_audio
from acestep.preprocess.plan import SongPrompts
from acestep.settings.preprocess import LatentDraw

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

    @property
    def vae(self) -> Any:
        """The VAE, loaded at first use."""
        return self._part("vae", loading.load_vae)

    def latents(self, samples: np.ndarray, draw: LatentDraw, seed: int) -> Tensor:
        """Latents (T, C) fp32 on the CPU of `samples` (2, N)."""
        with self._measured("vae"):
            return encode_audio(self.vae, samples, draw, seed)

    def text_states(self, prompts: SongPrompts) -> TextStates:
        """Text encoder states of all prompts and token embeddings of the lyrics of one song."""
        text_encoder = self._part("text encoder", loading.load_text_encoder)
        with self._measured("text encoder"):
            return TextStates(
                lyrics=condition.embed_lyrics(text_encoder, prompts.lyrics),
                texts=tuple(condition.encode_text(text_encoder, text) for text in prompts.texts),
                metas_cut=any(condition.metas_are_cut(text_encoder, text) for text in prompts.texts),
                lyrics_cut=condition.lyrics_are_cut(text_encoder, prompts.lyrics),
            )

    def condition(self, states: TextStates) -> dict[str, Tensor]:
        """`head` (Ll + 1, E) and `text.<n>` (Lt, E): what joined is the condition of generation."""
        encoder = self._part("condition encoder", loading.load_condition_encoder)
        with self._measured("condition encoder"):
            tensors = {"head": condition.condition_head(encoder, states.lyrics)[0]}
            for number, text in enumerate(states.texts):
                tensors[f"text.{number}"] = condition.condition_text(encoder, text)[0]
            return {name: tensor.cpu() for name, tensor in tensors.items()}

    def let_go(self) -> None:
        """Drop all loaded models and give their memory back."""
        self._parts.clear()
        free_memory()

    def _part(self, name: str, load: Any) -> Any:
        if name not in self._parts:
            with self._measured("load models"):
                self._parts[name] = load(self._checkpoint, self._choice.dtype, self._choice.torch_device)
        return self._parts[name]

    @contextmanager
    def _measured(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started
