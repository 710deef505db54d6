"""Audio to latents and back, in overlapping windows, so that memory does not grow with the length of the music.

Windows are wide enough for the VAE's reach (a fraction of a second) to end inside their overlap, which is thrown
away: the result is that of one pass over the whole, whatever the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acestep.core.device import macos_version
from acestep.core.errors import UserError
from acestep.settings.preprocess import LatentDraw

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck

ENCODE_WINDOW_S, ENCODE_WINDOW_SMALL_S = 30, 15
"""Encoder windows on most devices, and on graphics cards of at most 8 GiB."""

ENCODE_OVERLAP_S = 2
_SMALL_CARD_BYTES = 8 << 30

METAL_WINDOW, METAL_OVERLAP = 32, 8
"""Latent frames where Metal's convolutions give at most 65536 samples (34 frames). The VAE reaches seven frames."""
_METAL_LIMIT_UNTIL = (15, 1)
"""The macOS from which convolutions while encoding have no such limit (torch's Convolution.mm)."""

PEAK = 10 ** (-1 / 20)
"""-1 dBFS, the peak of everything that is generated."""

_INAUDIBLE = 1e-6


@torch.no_grad()
def encode_audio(vae: AutoencoderOobleck, samples: np.ndarray, draw: LatentDraw, seed: int) -> Tensor:
    """Latents of 48 kHz stereo audio.  (2, N) → (N // hop, C), fp32 on the CPU.

    `draw` "sample" draws once from the VAE's posterior, as the model was trained; the noise comes from a CPU
    generator with `seed`, so it is the same on every device. "mean" takes the posterior's mean.

    Audio over 30 s is encoded in windows (overlap 2 s a side, thrown away). Raises UserError for audio shorter than
    one frame and for latents that are not finite.
    """
    hop = vae.hop_length
    frames = samples.shape[-1] // hop
    if not frames:
        raise UserError("The audio is shorter than one latent frame (0.04 s).", fix="Use a longer recording.")
    parameter = next(vae.parameters())
    audio = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None]
    window, overlap = _encode_window(vae)
    means, stds = [], []
    for start, stop, cut_left, keep in _windows(audio.shape[-1], window, overlap, hop):
        piece = audio[..., start:stop].to(parameter.device, parameter.dtype)
        posterior = vae.encode(piece).latent_dist
        kept = slice(cut_left, cut_left + keep)
        means.append(posterior.mean[0, :, kept].float().cpu().T)
        stds.append(posterior.std[0, :, kept].float().cpu().T)
    mean, std = torch.cat(means), torch.cat(stds)  # (T, C)
    if draw == "mean":
        latents = mean.contiguous()
    else:
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        latents = mean + std * noise
    if not torch.isfinite(latents).all():
        raise UserError(
            "The VAE gave latents that are not finite numbers.",
            fix="Choose precision fp32, and check the VAE's files.",
        )
    return latents


@torch.no_grad()
def decode_latents(vae: AutoencoderOobleck, latents: Tensor) -> np.ndarray:
    """Audio of latents, with its peak at -1 dBFS.  (T, C) → (2, T · hop) float32.

    Decoded in windows that fit the device, in the VAE's precision. Silence stays silence.
    """
    hop = vae.hop_length
    parameter = next(vae.parameters())
    window, overlap = _decode_window(parameter.device)
    audio = np.zeros((vae.config.audio_channels, latents.shape[0] * hop), dtype=np.float32)
    for start, stop, cut_left, keep in _windows(latents.shape[0], window, overlap, 1):
        piece = latents[start:stop].T[None].to(parameter.device, parameter.dtype)
        decoded = vae.decode(piece).sample[0].float().cpu().numpy()
        first = start + cut_left
        audio[:, first * hop : (first + keep) * hop] = decoded[:, cut_left * hop : (cut_left + keep) * hop]
    return to_peak(audio)


def to_peak(audio: np.ndarray) -> np.ndarray:
    """Audio scaled so that its peak is -1 dBFS; silence (below 1e-6) is left alone."""
    peak = float(max(audio.max(initial=0.0), -audio.min(initial=0.0)))
    if not math.isfinite(peak):
        raise UserError(
            "The decoded audio is not made of finite numbers.", fix="Choose precision fp32, and check the VAE's files."
        )
    return audio if peak < _INAUDIBLE else audio * np.float32(PEAK / peak)


def _windows(length: int, window: int, overlap: int, hop: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, output units to cut at the left, output units to keep) of each window over `length` units.

    One unit of output stands for `hop` of input. A length of at most one window is taken in one piece; else every
    window but the first and last has `overlap` on both sides. Nothing is kept of a last, unfinished output unit.
    """
    units = length // hop
    if length <= window:
        yield 0, length, 0, units
        return
    core = (window - 2 * overlap) // hop
    for first in range(0, units, core):
        start = max(0, first * hop - overlap)
        last = min(first + core, units)
        # The last window takes the rest of the input along, as one pass over the whole would.
        stop = length if last == units else min(length, last * hop + overlap)
        yield start, stop, first - start // hop, last - first


def _encode_window(vae: AutoencoderOobleck) -> tuple[int, int]:
    """Window and overlap in samples, both whole frames."""
    device = next(vae.parameters()).device
    small = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory <= _SMALL_CARD_BYTES
    rate = vae.config.sampling_rate
    hop = vae.hop_length
    if device.type == "mps" and macos_version() < _METAL_LIMIT_UNTIL:
        return METAL_WINDOW * hop, METAL_OVERLAP * hop
    seconds = ENCODE_WINDOW_SMALL_S if small else ENCODE_WINDOW_S
    return seconds * rate // hop * hop, ENCODE_OVERLAP_S * rate // hop * hop


def _decode_window(device: torch.device) -> tuple[int, int]:
    """Window and overlap in latent frames."""
    if device.type == "mps":
        return METAL_WINDOW, METAL_OVERLAP
    if device.type != "cuda":
        return 256, 64
    free_gib = torch.cuda.mem_get_info(device)[0] / (1 << 30)
    for least_gib, frames in ((24, 512), (16, 384), (12, 256)):
        if free_gib >= least_gib:
            return frames, 64
    return 128, 32
