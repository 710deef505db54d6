"""Audio to the 5 Hz codes in which ACE-Step's language models know music."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import load_audio_tokenizer, load_silence_latent, load_vae
from acestep.model.vae import encode_audio

if TYPE_CHECKING:
    from diffusers.pipelines.ace_step import AceStepAudioTokenizer

CODE_RATE = 5
"""Codes in a second."""


class AudioCoder:
    """A checkpoint's VAE and audio tokenizer, loaded. Its transformer is not needed and never read."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> None:
        self._vae = load_vae(checkpoint, dtype, device)
        # The tokenizer's rounding decides between codes, so it stays exact.
        self._tokenizer = load_audio_tokenizer(checkpoint, torch.float32, device)
        self._silence = load_silence_latent(checkpoint)

    def codes(self, samples: np.ndarray, seed: int) -> list[int]:
        """Five codes for each second of 48 kHz stereo audio (2, N), the last for what is left over."""
        return latent_codes(self._tokenizer, encode_audio(self._vae, samples, "sample", seed), self._silence)


@torch.inference_mode()
def latent_codes(tokenizer: AceStepAudioTokenizer, latents: Tensor, silence: Tensor) -> list[int]:
    """Latents (T, C) at 25 Hz → ⌈T / 5⌉ codes; the last group is filled up with silence (1, N, C)."""
    parameter = next(tokenizer.parameters())
    _, indices = tokenizer.tokenize(latents[None].to(parameter.device, parameter.dtype), silence)
    return [int(index) for index in indices.flatten().tolist()]
