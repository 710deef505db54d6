"""The untrained model's VAE: a narrow Oobleck with the published strides, whose random weights are put in scale.

Untrained, it does not reconstruct. It does what the rest of the program needs: latents follow the loudness
and colour of the music, have about unit power, and decoding them makes sound of moderate level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck
    from torch import Tensor, nn

LATENT_WIDTH = 8
"""Latent channels. The published VAE has 64, and its first layers at 48 kHz would be too slow for tests."""

SAMPLE_RATE = 48_000
LATENT_MEAN, LATENT_STD = 0.45, 0.65
"""Size of the latents' mean and spread over music from loud to silent; loud music alone has about unit power."""

POSTERIOR_STD = 0.05


def build_vae(seed: int) -> AutoencoderOobleck:
    """An AutoencoderOobleck with hop 1920 at 48 kHz stereo; the same weights for the same seed."""
    import torch
    from diffusers import AutoencoderOobleck

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vae = AutoencoderOobleck(
            encoder_hidden_size=2 * LATENT_WIDTH,  # the encoder's last layer gives mean and scale, this many in all
            downsampling_ratios=[2, 4, 4, 6, 10],
            channel_multiples=[1, 1, 1, 2, 2],
            decoder_channels=LATENT_WIDTH,
            decoder_input_channels=LATENT_WIDTH,
            audio_channels=2,
            sampling_rate=SAMPLE_RATE,
        ).eval()
        _scale_encoder(vae.encoder, torch.from_numpy(calibration_music())[None])
        _scale_decoder(vae.decoder)
    return vae


def calibration_music(duration_s: float = 4.0) -> np.ndarray:
    """Chords, bass and noise bursts from loud to nearly silent, to measure the encoder with.  (2, N) float32."""
    time_s = np.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    beat = time_s % 0.5
    chord = np.select([time_s < duration_s / 2], [0], 5)  # up a fourth half-way
    left, right = np.zeros_like(time_s), np.zeros_like(time_s)
    for step, pan in ((0, 0.3), (4, 0.5), (7, 0.7)):
        tone = sum(np.sin(2 * math.pi * 220 * 2 ** ((step + chord) / 12) * k * time_s) / k for k in (1, 2, 3))
        left += (1 - pan) * tone * np.exp(-2 * beat)
        right += pan * tone * np.exp(-2 * beat)
    bass = np.sin(2 * math.pi * 55 * 2 ** (chord / 12) * time_s)
    noise = np.random.default_rng(0).standard_normal(time_s.size) * np.exp(-25 * (time_s % 0.25))
    stereo = np.stack([left, right]) * 0.3 + 0.4 * bass + 0.3 * noise
    fade = np.geomspace(1.0, 0.03, time_s.size)
    return (0.9 * fade * stereo / np.abs(stereo).max()).astype(np.float32)


def _scale_encoder(encoder: nn.Module, music: Tensor) -> None:
    """A filter bank, its energies (the activations bend the wave), and means over ever longer times of them."""
    import torch

    encoder.conv1.weight_g.mul_(6.0)  # loud inside: where the wave is small, the activations would not bend it
    value = encoder.conv1(music)
    for block in encoder.block:
        _set_weight(block.conv1, torch.randn(block.conv1.weight.shape[:2]), _bump(block.conv1.kernel_size[0]))
        value = _to_unit_size(block, block.conv1, value)
    _set_weight(encoder.conv2, torch.randn(encoder.conv2.weight.shape[:2]), torch.tensor([0.25, 0.5, 0.25]))
    raw = encoder.conv2(encoder.snake1(value))[0]  # (2 C, T): means, then posterior scales
    sign = torch.tensor([1.0, -1.0]).repeat(LATENT_WIDTH // 2)
    mean = torch.cat([sign * LATENT_MEAN, torch.full_like(sign, math.log(math.expm1(POSTERIOR_STD)))])
    spread = torch.cat([torch.full_like(sign, LATENT_STD), torch.full_like(sign, 0.2)])
    gain = _rounded(spread / raw.std(dim=1))
    encoder.conv2.bias.copy_(_rounded((encoder.conv2.bias - raw.mean(dim=1)) * gain + mean))
    encoder.conv2.weight_g.mul_(gain[:, None, None])


def _scale_decoder(decoder: nn.Module) -> None:
    """Smooth envelopes out of the latents, on tones that the second layer makes (250 Hz and its harmonics)."""
    import torch

    noise = torch.randn(1, LATENT_WIDTH, 50)
    value = decoder.conv1(noise)
    for index, block in enumerate(decoder.block):
        if index != 1:
            _set_weight(block.conv_t1, torch.randn(block.conv_t1.weight.shape[:2]), _bump(block.conv_t1.kernel_size[0]))
        value = _to_unit_size(block, block.conv_t1, value)
    # Differences of neighbouring samples: what does not move is not heard.
    _set_weight(decoder.conv2, torch.randn(decoder.conv2.weight.shape[:2]), torch.tensor([0, 0, -1.0, 0, 1, 0, 0]))
    peak = decoder.conv2(decoder.snake1(value)).abs().amax()
    decoder.conv2.weight_g.mul_(_rounded(0.5 / peak))


def _set_weight(layer: nn.Module, mix: Tensor, kernel: Tensor) -> None:
    """Give a weight-normalised convolution the weight mix ⊗ kernel.  mix: its two channel axes; kernel: its taps."""
    weight = mix[:, :, None] * kernel
    layer.weight_v.copy_(weight)
    layer.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])


def _to_unit_size(block: nn.Module, layer: nn.Module, value: Tensor) -> Tensor:
    """The output of `block` after `layer` in it was scaled so that the block's output has a spread of one."""
    gain = _rounded(1 / block(value).std())
    layer.weight_g.mul_(gain)
    layer.bias.mul_(gain)
    return block(value)


def _bump(length: int) -> Tensor:
    """A smooth window of positive weights with sum one."""
    import torch

    window = torch.hann_window(length + 2, periodic=False)[1:-1]
    return window / window.sum()


def _rounded(value: Tensor) -> Tensor:
    """Rounded to 1/64, so that machines that sum in another order still build the same weights."""
    return (value * 64).round() / 64
