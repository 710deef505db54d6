"""The untrained model's DiT, condition encoder and audio tokenizer: small, with weights that behave as if pre-trained.

Purely random weights predict velocities without relation to their input. These are set so that the model is
already the best predictor for music it knows nothing about, white noise of unit power: with
x_t = t·noise + (1 − t)·x0 its velocity is (2t − 1) / (t² + (1 − t)²) · x_t. Everything that makes music different
from white noise (mean, colour, repetition, its prompt) is left for an adapter to learn, and can be learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
        AceStepTransformer1DModel,
    )

_SPARE = 8
"""Stream channels beyond those a patch of latents needs; they make room for the scaling trick below."""


def build_transformer(arguments: dict[str, Any], seed: int) -> AceStepTransformer1DModel:
    """The DiT for constructor `arguments`."""
    import torch
    from diffusers import AceStepTransformer1DModel

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        dit = AceStepTransformer1DModel(**arguments).eval()
        for name, parameter in dit.named_parameters():
            _set_scale(name, parameter)
        _pass_latents_through(dit)
        _scale_with_time(dit)
    return dit


def build_condition_encoder(arguments: dict[str, Any], silence: torch.Tensor, seed: int) -> AceStepConditionEncoder:
    """The condition encoder with the given silence latent (1, N, C)."""
    import torch
    from diffusers import AceStepConditionEncoder

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        encoder = AceStepConditionEncoder(**arguments).eval()
        for name, parameter in encoder.named_parameters():
            _set_scale(name, parameter)
        encoder.silence_latent = silence.clone()
    return encoder


def build_audio_tokenizer(
    tokenizer: dict[str, Any], detokenizer: dict[str, Any], seed: int
) -> tuple[AceStepAudioTokenizer, AceStepAudioTokenDetokenizer]:
    """The 5 Hz tokenizer and its inverse, for their constructor arguments."""
    import torch
    from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        pair = AceStepAudioTokenizer(**tokenizer).eval(), AceStepAudioTokenDetokenizer(**detokenizer).eval()
        for module in pair:
            for name, parameter in module.named_parameters():
                _set_scale(name, parameter)
    return pair


def _set_scale(name: str, parameter: torch.Tensor) -> None:
    """Matrices keep the size of their input; what writes into the residual stream is held small."""
    if parameter.ndim == 1:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    elif name.endswith(("to_out.0.weight", "down_proj.weight")):
        parameter.normal_(std=0.2 / parameter.shape[1] ** 0.5)
    elif name.endswith("time_proj.weight"):
        parameter.normal_(std=0.05 / parameter.shape[1] ** 0.5)
    elif "scale_shift_table" in name:
        parameter.normal_(std=0.1)
        if parameter.shape[1] == 6:
            parameter[:, [2, 5]] += 0.7  # the gates of attention and MLP stand open
    else:
        fan_in = parameter[0].numel() if parameter.ndim == 2 or "conv" in name else parameter.shape[-1]
        parameter.normal_(std=fan_in**-0.5)


def _pass_latents_through(dit: AceStepTransformer1DModel) -> None:
    """Let the residual stream carry x_t from the first to the last layer.

    A patch of latents (P = patch_size · C values) lives in the first P + _SPARE channels, in a basis orthogonal to
    the vector of ones, so that what the time embedding adds to all of these channels alike never reaches the output.
    """
    import torch

    width, latent_width = dit.config.hidden_size, dit.config.audio_acoustic_hidden_dim
    patch = dit.patch_size * latent_width
    carrier = patch + _SPARE
    ones = torch.ones(carrier, 1)
    basis, _ = torch.linalg.qr(torch.cat([ones, torch.randn(carrier, patch)], dim=1))
    basis = basis[:, 1:]  # (carrier, patch), orthonormal
    weight_in = dit.proj_in_conv.weight  # (width, 3 C, patch_size): silence, mask, x_t
    weight_in.mul_(0.1)
    weight_in[:carrier] = 0.0
    weight_in[:carrier, 2 * latent_width :] = basis.view(carrier, latent_width, dit.patch_size)
    weight_out = dit.proj_out_conv.weight  # (width, C, patch_size)
    weight_out.normal_(std=0.5 / (width - carrier) ** 0.5)
    weight_out[:carrier] = basis.view(carrier, latent_width, dit.patch_size)


def _scale_with_time(dit: AceStepTransformer1DModel) -> None:
    """Fit the time embedding so that the carried x_t leaves the model times (2t − 1) / (t² + (1 − t)²).

    The last norm divides by the stream's size, and the last modulation multiplies by 1 + table + embedding(t): the
    table takes the 1 away, and the embedding is fitted to the wanted factor times that size.
    """
    import torch

    width = dit.config.hidden_size
    patch = dit.patch_size * dit.config.audio_acoustic_hidden_dim
    carrier = patch + _SPARE
    embed = dit.time_embed
    # Only slow sinusoids: the timestep is coarse in bf16, and a smooth function does not mind.
    embed.linear_1.weight[:, _fast_sinusoids(embed.in_channels)] = 0.0
    embed.linear_1.weight.mul_(3.0)
    embed.linear_1.bias.normal_(std=1.0)
    t = torch.linspace(0, 1, 401)
    features = embed.act1(embed.linear_1(embed.time_sinusoid(t * embed.scale)))
    power = t.square() + (1 - t).square()
    size = ((patch * power + 0.05 * (width - carrier)) / width).sqrt()
    wanted = ((2 * t - 1) / power * size)[:, None]
    ridge = features.T @ features + 1e-3 * torch.eye(width)
    embed.linear_2.weight.normal_(std=0.1 / width**0.5)
    embed.linear_2.weight[:carrier] = torch.linalg.solve(ridge, features.T @ wanted).T
    dit.time_embed_r.linear_2.weight.mul_(0.05)
    dit.scale_shift_table[:, :, :carrier] = 0.0
    dit.scale_shift_table[:, 1, :carrier] = -1.0


def _fast_sinusoids(channels: int, fastest: float = 8.0) -> torch.Tensor:
    """Which of the embedding's [cos | sin] channels turn faster than `fastest` radians between t = 0 and 1."""
    import torch

    half = channels // 2
    radians = 1000.0 * 10_000.0 ** (-torch.arange(half) / half)
    return (radians > fastest).repeat(2)
