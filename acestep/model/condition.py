"""What the DiT is conditioned on, for training and generation alike: text, lyrics, timbre and context.

The packed condition of one piece is lyrics, then one timbre token, then text, without padding, as
`AceStepConditionEncoder.forward` gives it for a batch of one. It is computed in two halves: the head (lyrics and
timbre) stays the same whatever the caption says, so a song with several captions pays for it once.

Shapes: Lt text tokens, Ll lyric tokens, TD text width, E condition width, C latent width, T latent frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from acestep.model.facts import CONTEXT_MASK, LYRIC_TOKENS, TEXT_TOKENS, TIMBRE_FRAMES

if TYPE_CHECKING:
    from diffusers import AceStepConditionEncoder
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextParts(Protocol):
    """A text encoder with its tokenizer, as `acestep.model.loading.load_text_encoder` gives it."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@torch.no_grad()
def encode_text(text_encoder: TextParts, prompt: str) -> Tensor:
    """Last hidden states of every token of the text prompt, cut at 256 tokens.  (1, Lt, TD)."""
    ids = _token_ids(text_encoder, prompt, TEXT_TOKENS)
    return text_encoder.model(input_ids=ids).last_hidden_state


@torch.no_grad()
def embed_lyrics(text_encoder: TextParts, lyric_text: str) -> Tensor:
    """Token embeddings of the lyric prompt, cut at 2048 tokens.  (1, Ll, TD).

    Only the embedding table is used; the condition encoder's own layers read the lyrics in context.
    """
    ids = _token_ids(text_encoder, lyric_text, LYRIC_TOKENS)
    return text_encoder.model.get_input_embeddings()(ids)


def metas_are_cut(text_encoder: TextParts, prompt: str) -> bool:
    """Whether the prompt is so long that its metas or its end token fall behind the 256 tokens that are encoded."""
    return _count(text_encoder, prompt.removesuffix("\n")) > TEXT_TOKENS


def lyrics_are_cut(text_encoder: TextParts, lyric_text: str) -> bool:
    """Whether the end of the lyrics falls behind the 2048 tokens that are encoded."""
    return _count(text_encoder, lyric_text) > LYRIC_TOKENS


@torch.no_grad()
def condition_head(condition_encoder: AceStepConditionEncoder, lyric_states: Tensor) -> Tensor:
    """Encoded lyrics and the timbre token of "no reference recording".  (1, Ll, TD) → (1, Ll + 1, E).

    The timbre encoder hears the first 30 s of the silence latent, as in generation; zeros or a single frame would be
    outside of what it was trained on.
    """
    weight = condition_encoder.lyric_encoder.embed_tokens.weight
    lyric_states = lyric_states.to(weight.device, weight.dtype)
    everything = torch.ones(lyric_states.shape[:2], dtype=torch.bool, device=weight.device)
    lyrics = condition_encoder.lyric_encoder(inputs_embeds=lyric_states, attention_mask=everything)
    silence = condition_encoder.silence_latent[:, :TIMBRE_FRAMES].to(weight.device, weight.dtype)
    only_one = torch.zeros(1, dtype=torch.long, device=weight.device)
    timbre, _mask = condition_encoder.timbre_encoder(silence, only_one)  # (1, 1, E)
    return torch.cat([lyrics, timbre], dim=1)


@torch.no_grad()
def condition_text(condition_encoder: AceStepConditionEncoder, text_states: Tensor) -> Tensor:
    """Text states in the condition's width.  (1, Lt, TD) → (1, Lt, E)."""
    weight = condition_encoder.text_projector.weight
    return condition_encoder.text_projector(text_states.to(weight.device, weight.dtype))


def join_condition(head: Tensor, text: Tensor) -> Tensor:
    """The packed condition: head, then text.  (1, Lh, E), (1, Lt, E) → (1, Lh + Lt, E)."""
    return torch.cat([head, text], dim=1)


def context_latents(silence_latent: Tensor, frames: int) -> Tensor:
    """What the DiT sees besides the noise in text to music: silence to be filled, everywhere.  (1, frames, 2 C).

    silence_latent: (1, N, C), repeated from its start where `frames` exceeds N. The second C channels are the mask.
    """
    repeats = -(-frames // silence_latent.shape[1])
    silence = silence_latent.repeat(1, repeats, 1)[:, :frames]
    return torch.cat([silence, torch.full_like(silence, CONTEXT_MASK)], dim=-1)


def _token_ids(text_encoder: TextParts, text: str, limit: int) -> Tensor:
    tokens = text_encoder.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    return tokens.input_ids.to(text_encoder.model.device)


def _count(text_encoder: TextParts, text: str) -> int:
    return len(text_encoder.tokenizer(text, verbose=False).input_ids)
