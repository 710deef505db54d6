"""Stage one: the VAE, an AutoencoderOobleck with hop 1920 at 48 kHz stereo and 24 latent channels.

In diffusers' class the first encoder block runs at the full sample rate, twice as wide as the latents, and costs four
fifths of a step. Here it is held to what it must do: a bank of filters with stride 20 (the residual units before it
pass their input through unchanged), and the last decoder block is the inverse bank. `TrainingVae` computes only that,
and `written` puts the weights into a whole AutoencoderOobleck, which gives the same numbers.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn
from torch.nn import functional

from acestep.audio.format import SAMPLE_RATE
from acestep.core.ahead import Ahead
from demo_model.pool import AudioPool
from demo_model.state import load_facts, load_state, machine_name, rate_at, save_state

LATENT_WIDTH = 24
HOP = 1920
STRIDES = [20, 6, 4, 4]
MULTIPLES = [2, 3, 4, 4]
DECODER_CHANNELS = 48
FILTER = 2 * STRIDES[0]
"""Taps of the outer filter banks, as the class makes its strided convolutions."""

_PASS = -20.0
"""Logarithm of a snake's frequency so low that the snake passes its input through."""

WAVE_WEIGHT, KL_WEIGHT = 0.15, 1e-3
"""Beside the spectral loss. A larger weight of the KL keeps the latents from being used for hundreds of steps."""

FFT_SIZES = (128, 512, 1024, 2048, 4096)
FLOOR = 3e-4
"""-70 dB; what lies below in both spectra is not heard."""

LATENT_NOISE = 0.1
"""Spread of what is added to the latents while training, so that the decoder bears what a DiT gets wrong."""


def empty_vae() -> AutoencoderOobleck:
    return AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT_WIDTH,
        downsampling_ratios=STRIDES,
        channel_multiples=MULTIPLES,
        decoder_channels=DECODER_CHANNELS,
        decoder_input_channels=LATENT_WIDTH,
        audio_channels=2,
        sampling_rate=SAMPLE_RATE,
    )


class _Snake(torch.autograd.Function):
    """x + sin²(a x) / b with one pass less over memory than autograd's own graph needs; a, b as logarithms."""

    @staticmethod
    def forward(ctx, x: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
        a, inverse_b = log_a.exp().to(x.dtype), log_b.neg().exp().to(x.dtype)
        ctx.save_for_backward(x, a, inverse_b)
        wave = torch.sin(x * a)
        return torch.addcmul(x, wave.square_(), inverse_b)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a, inverse_b = ctx.saved_tensors
        angle = x * a
        slope = torch.sin(2 * angle).mul_(gradient)  # d sin²(u) / du = sin 2u
        by_a = (slope * x).sum((0, 2), keepdim=True) * inverse_b * a
        by_b = -(torch.sin(angle).square_().mul_(gradient)).sum((0, 2), keepdim=True) * inverse_b
        return torch.addcmul(gradient, slope, a * inverse_b), by_a.float(), by_b.float()


def _fast_snakes(module: nn.Module) -> None:
    for child in module.modules():
        if type(child).__name__ == "Snake1d":
            child.forward = lambda x, snake=child: _Snake.apply(x, snake.alpha, snake.beta)


@torch.no_grad()
def _start_in_scale(vae: TrainingVae) -> None:
    """Every layer keeps the size of its input and music comes out as latents of about unit size.

    With torch's usual weights the latents would hardly depend on the music, and would drown in the posterior's noise.
    """
    for name, layer in vae.named_modules():
        if not isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
            continue
        weight = layer.weight_v if hasattr(layer, "weight_v") else layer.weight
        if isinstance(layer, nn.ConvTranspose1d):
            fan_in = weight.shape[0] * weight.shape[2] // layer.stride[0]
        else:
            fan_in = weight.shape[1] * weight.shape[2]
        gain = 0.3 if "res_unit" in name and name.endswith("conv2") else 1.0
        value = torch.randn_like(weight) * gain / fan_in**0.5
        if hasattr(layer, "weight_v"):
            _set_weight(layer, value, None)
        else:
            weight.copy_(value * (8.0 if layer is vae.analysis else 0.1))  # music has a size of about 0.1
            layer.bias.zero_()
    vae.encoder[-1].bias[LATENT_WIDTH:] = -3.0  # a spread of 0.05


class TrainingVae(nn.Module):
    """The parts of the VAE that learn.  Audio (B, 2, N) to latents (B, C, N / 1920) and back."""

    def __init__(self) -> None:
        super().__init__()
        whole = empty_vae()
        self.analysis = nn.Conv1d(2, 2 * LATENT_WIDTH * MULTIPLES[0], FILTER, STRIDES[0], STRIDES[0] // 2)
        self.encoder = nn.Sequential(*whole.encoder.block[1:], whole.encoder.snake1, whole.encoder.conv2)
        self.decoder = nn.Sequential(
            whole.decoder.conv1, *list(whole.decoder.block)[:-1], whole.decoder.block[-1].snake1
        )
        inner = DECODER_CHANNELS * MULTIPLES[0]
        self.synthesis = nn.ConvTranspose1d(inner, 2, FILTER, STRIDES[0], STRIDES[0] // 2)
        _fast_snakes(self)
        _start_in_scale(self)

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the posterior, fp32."""
        mean, raw = self.encoder(self.analysis(audio)).float().chunk(2, dim=1)
        return mean, functional.softplus(raw) + 1e-4

    def decode(self, latents: Tensor) -> Tensor:
        return self.synthesis(self.decoder(latents)).float()

    @torch.no_grad()
    def written(self) -> AutoencoderOobleck:
        """The same VAE as diffusers' whole class."""
        vae = empty_vae().eval()
        _pass_through(vae.encoder.conv1)
        first, last = vae.encoder.block[0], vae.decoder.block[-1]
        for block in (first, last):
            for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
                _silence(unit.conv2)
        first.snake1.alpha.fill_(_PASS)
        weight = torch.zeros_like(first.conv1.weight_v)
        weight[:, :2] = self.analysis.weight
        _set_weight(first.conv1, weight, self.analysis.bias)
        ours = nn.Sequential(*vae.encoder.block[1:], vae.encoder.snake1, vae.encoder.conv2)
        ours.load_state_dict(self.encoder.state_dict())
        ours = nn.Sequential(vae.decoder.conv1, *list(vae.decoder.block)[:-1], last.snake1)
        ours.load_state_dict(self.decoder.state_dict())
        weight = torch.zeros_like(last.conv_t1.weight_v)
        weight[:, :2] = self.synthesis.weight
        bias = torch.zeros_like(last.conv_t1.bias)
        bias[:2] = self.synthesis.bias
        _set_weight(last.conv_t1, weight, bias)
        vae.decoder.snake1.alpha.fill_(_PASS)
        _pass_through(vae.decoder.conv2)
        return vae


def normalise(vae: TrainingVae, audio: Tensor) -> None:
    """Bring every latent channel to mean 0 and spread 1 over `audio`, as the DiT expects it: noise has them too.

    The encoder's last layer takes shift and factor, and the decoder's first takes them back, so what is heard stays
    the same but for the outermost frames, beside which the decoder's padding now stands for the mean. The posterior's
    spread follows closely, as softplus is nearly an exponential there.
    """
    with torch.no_grad():
        mean, _ = vae.encode(audio)
        centre, factor = mean.mean(dim=(0, 2)), 1 / mean.std(dim=(0, 2))  # (C,)
        last, first = vae.encoder[-1], vae.decoder[0]
        last.weight_g[:LATENT_WIDTH] *= factor[:, None, None]
        last.bias[:LATENT_WIDTH] = (last.bias[:LATENT_WIDTH] - centre) * factor
        last.bias[LATENT_WIDTH:] += factor.log()
        weight = first.weight.detach()  # (out, C, taps)
        bias = first.bias + (weight * centre[None, :, None]).sum(dim=(1, 2))
        _set_weight(first, weight / factor[None, :, None], bias)


def _set_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """A weight-normalised layer with exactly this weight; rows of zeros get no length."""
    norm = weight.flatten(1).norm(dim=1)[:, None, None]
    layer.weight_g.copy_(norm)
    layer.weight_v.copy_(torch.where(norm > 0, weight, torch.full_like(weight, 1e-2)))
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _silence(layer: nn.Module) -> None:
    _set_weight(layer, torch.zeros_like(layer.weight_v), None)


def _pass_through(layer: nn.Module) -> None:
    """The two audio channels go through as they are; all other channels are zero."""
    weight = torch.zeros_like(layer.weight_v)
    for channel in range(2):
        weight[channel, channel, weight.shape[2] // 2] = 1.0
    _set_weight(layer, weight, None)


def mid_side(audio: Tensor) -> Tensor:
    """(B, 2, N) → (2 B, N)."""
    return torch.cat([audio[:, 0] + audio[:, 1], audio[:, 0] - audio[:, 1]]) / 2


_windows: dict[int, Tensor] = {}
_bin_weights: dict[int, Tensor] = {}


def spectrum(audio: Tensor, size: int) -> Tensor:
    """Magnitudes as amplitudes: a full-scale sine gives about 0.5.  (B, N) → (B, size / 2 + 1, T)."""
    if size not in _windows:
        _windows[size] = torch.hann_window(size, device=audio.device)
    found = torch.stft(audio, size, size // 4, window=_windows[size], return_complex=True)
    return found.abs() / (size / 2)


def bin_weights(size: int, device: torch.device) -> Tensor:
    """Weights of an FFT's bins with mean 1, as densely as the mel scale looks there.  (size / 2 + 1, 1).

    Alike, five sixths of all bins would lie above 4 kHz, where little of the music does.
    """
    if size not in _bin_weights:
        frequencies = torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1, device=device)
        density = 1 / (1 + frequencies / 700)
        _bin_weights[size] = (density / density.mean())[:, None]
    return _bin_weights[size]


def spectral_loss(one: Tensor, other: Tensor, size: int) -> Tensor:
    """Distance of logarithmic magnitudes and of magnitudes, at one resolution.  one, other: (B, N)."""
    found = spectrum(one, size)
    with torch.no_grad():
        wanted = spectrum(other, size)
    distances = ((found + FLOOR).log() - (wanted + FLOOR).log()).abs()
    logarithms = (distances * bin_weights(size, one.device)).mean()
    return logarithms + 0.5 * (found - wanted).norm() / (wanted.norm() + 1e-3)


def losses(vae: TrainingVae, audio: Tensor, sizes: list[int], noise: float) -> dict[str, Tensor]:
    with torch.autocast(audio.device.type, torch.bfloat16):
        mean, std = vae.encode(audio)
        latents = mean + (std.square() + noise**2).sqrt() * torch.randn_like(mean)
        heard = vae.decode(latents)
    kl = 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).mean()
    one, other = mid_side(heard), mid_side(audio)
    wave = (one - other).abs().mean() / (other.abs().mean() + 1e-3)
    spectral = sum(spectral_loss(one, other, size) for size in sizes) / len(sizes)
    return {"spectral": spectral, "wave": wave, "kl": kl, "power": mean.detach().square().mean()}


def augmented(clips: Tensor, random: np.random.Generator) -> Tensor:
    """Other levels, sides and colours of the same music, so that the VAE also serves sounds it has not met.

    clips: int16 (B, 2, N) → float (B, 2, N).
    """

    def each(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(clips.device)[:, None, None]

    count = len(clips)
    swapped = each(random.random(count) < 0.5)
    gain = each((10 ** (random.uniform(-10, 2, count) / 20)).astype(np.float32))
    tilt = each((random.uniform(-0.7, 0.7, count) * (random.random(count) < 0.3)).astype(np.float32))
    audio = torch.where(swapped, clips.flip(1), clips) * (gain / 32767)
    audio[:, :, 1:] += tilt * audio[:, :, :-1]
    return audio.clamp_(-1, 1)


@dataclass(frozen=True)
class VaePlan:
    """`batch` clips of `frames` latent frames a step."""

    steps: int
    batch: int
    frames: int
    device: str
    log_every: int
    compiled: bool = False

    @property
    def resolutions(self) -> int:
        """Of the spectral loss in a step, drawn anew each time; a graphics card has time for all."""
        return len(FFT_SIZES) if self.device == "cuda" else 2


def train_vae(folder: Path, pool: AudioPool, plan: VaePlan) -> None:
    """Train until `plan.steps`, going on from `folder` where something is there already.

    Once the latents were normalised a DiT may have learned from them, so more steps then train the decoder alone.
    """
    torch.manual_seed(0)
    vae = TrainingVae().to(plan.device)
    facts = load_facts(folder) or {"step": 0, "seconds": 0.0}
    if facts.get("normalised"):
        facts.setdefault("decoder_from", facts["step"])
        vae.analysis.requires_grad_(False)
        vae.encoder.requires_grad_(False)
    since = facts.get("decoder_from", 0)
    learning = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    load_state(folder, vae, [optimizer])
    if plan.compiled:
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    began, shown = time.perf_counter() - facts["seconds"], []
    steps = list(range(facts["step"], plan.steps))
    with Ahead(steps, lambda step: pool.clips(plan.batch, plan.frames * HOP, _drawn_by(step))) as ahead:
        for step in steps:
            clips = torch.from_numpy(ahead.take(step)).to(plan.device)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step - since, plan.steps - since, 8e-4)
            parts = _backward(vae, clips, step, plan)
            nn.utils.clip_grad_norm_(learning, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            shown.append(parts)
            if (step + 1) % plan.log_every == 0 or step + 1 == plan.steps:
                means = {name: round(statistics.fmean(float(row[name]) for row in shown), 4) for name in parts}
                seconds = time.perf_counter() - began
                print(f"vae step {step + 1}/{plan.steps} {means} {seconds:.0f} s", flush=True)
                shown = []
                facts |= {"step": step + 1, "seconds": seconds, "machine": machine_name(plan.device)}
                save_state(folder, vae, [optimizer], facts)
    if not facts.get("normalised"):
        clips = torch.from_numpy(pool.clips(64, min(128 * HOP, pool.samples.shape[2]), _drawn_by(0)))
        normalise(vae, clips.to(plan.device) / 32767)
        save_state(folder, vae, [], {**facts, "normalised": True})


def _drawn_by(step: int) -> np.random.Generator:
    return np.random.default_rng((1, step))


def _backward(vae: TrainingVae, clips: Tensor, step: int, plan: VaePlan) -> dict[str, Tensor]:
    """Gradients of a step, and the parts of its loss."""
    random = np.random.default_rng((6, step))
    torch.manual_seed(step)
    sizes = [int(size) for size in random.choice(FFT_SIZES, plan.resolutions, replace=False)]
    parts = losses(vae, augmented(clips, random), sizes, LATENT_NOISE)
    (parts["spectral"] + WAVE_WEIGHT * parts["wave"] + KL_WEIGHT * parts["kl"]).backward()
    return {name: value.detach() for name, value in parts.items()}


def load_trained(folder: Path) -> TrainingVae:
    vae = TrainingVae()
    if load_state(folder, vae) is None:
        raise SystemExit(f"{folder} holds no trained VAE; run the stage vae first.")
    return vae.eval()


@torch.no_grad()
def silence_latent(vae: TrainingVae, frames: int = 1500) -> Tensor:
    """The posterior's mean for silence, its middle frame repeated.  (1, frames, C)."""
    short = vae.encode(torch.zeros(1, 2, 100 * HOP))[0].transpose(1, 2)
    middle = short[:, 50:51].expand(-1, frames - 100, -1)
    return torch.cat([short[:, :50], middle, short[:, 50:]], dim=1)
