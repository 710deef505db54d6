"""Text to music: what people hear of a model or an adapter.

The sampling loop is diffusers' `AceStepPipeline`, put together from parts that are already in memory, with the
transformer as it stands (adapter attached or not). Prompt, defaults, noise and decoding are this project's, so
that a preview says what training says and a seed plays the same piece again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acestep.adapters import Adapter, load_adapter
from acestep.core.device import DeviceChoice, memory_told
from acestep.core.errors import UserError, did_you_mean
from acestep.core.jobs import Job
from acestep.model.attention import attention_kernels
from acestep.model.condition import lyrics_are_cut, metas_are_cut
from acestep.model.facts import INSTRUCTION, LANGUAGES, LYRIC_TOKENS, TEXT_TOKENS
from acestep.model.prompt import PromptLabels, language_code, lyric_prompt, sung_text, text_prompt
from acestep.model.vae import decode_latents
from acestep.settings.generate import GenerateSettings, SweepSettings

if TYPE_CHECKING:
    from diffusers import AceStepConditionEncoder, AceStepPipeline, AceStepTransformer1DModel, AutoencoderOobleck

    from acestep.model.checkpoints import Checkpoint
    from acestep.model.loading import TextEncoder
    from acestep.model.variants import Variant


@dataclass(frozen=True)
class Parts:
    """The loaded parts of one model, all on one device."""

    transformer: AceStepTransformer1DModel
    condition_encoder: AceStepConditionEncoder
    vae: AutoencoderOobleck
    text_encoder: TextEncoder
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Sampler:
    """How the noise becomes music. guidance 1 is none; `shift` above 1 spends more steps near the noise."""

    steps: int
    guidance: float
    shift: float


@dataclass(frozen=True)
class Generated:
    """One piece: `samples` (2, N) float32 at `sample_rate`, peak at -1 dBFS, and what made it.

    `settings` has the sampler values that were used in place of those left open.
    """

    samples: np.ndarray
    sample_rate: int
    seed: int
    settings: GenerateSettings

    @property
    def duration_s(self) -> float:
        return self.samples.shape[-1] / self.sample_rate


def load_parts(checkpoint: Checkpoint, device: DeviceChoice) -> Parts:
    """Load everything that generation needs."""
    from acestep.model import loading

    dtype, place = device.dtype, device.torch_device
    with _memory_errors():
        return Parts(
            transformer=loading.load_transformer(checkpoint, dtype, place),
            condition_encoder=loading.load_condition_encoder(checkpoint, dtype, place),
            vae=loading.load_vae(checkpoint, dtype, place),
            text_encoder=loading.load_text_encoder(checkpoint, dtype, place),
            checkpoint=checkpoint,
        )


Keep = Callable[[Generated, float | None], None]
"""Takes each piece as soon as it is played, with the adapter's strength (None: no adapter)."""


def play_sweep(
    parts: Parts,
    settings: GenerateSettings,
    sweep: SweepSettings,
    adapter: str | Path | None,
    keep: Keep,
    job: Job | None = None,
) -> None:
    """Play the same request at several strengths of an adapter, each with the same seeds, and so the same noise.

    The adapter is attached for this and taken off again, however it ends: the model is then what it was, bit for
    bit. Without an adapter the model plays alone, once a seed. Errors are those of `load_adapter` and `generate`.
    """
    job = job or Job()
    seeds = [settings.seed + take for take in range(sweep.takes)]
    strengths: Sequence[float | None] = list(dict.fromkeys(sweep.strength)) if adapter else [None]
    if not strengths:
        raise UserError("No adapter strength is given.", fix='Name one or more in "strength" (--strength).')
    with _attached(parts, adapter) as attached, job.stage("play", len(strengths) * len(seeds), "pieces") as stage:
        for strength in strengths:  # refused before the first is played
            _set_strength(attached, strength)
        for strength in strengths:
            _set_strength(attached, strength)
            for seed in seeds:
                job.check_stop()
                keep(generate(parts, settings.changed(seed=seed), job), strength)
                stage.advance()


@contextlib.contextmanager
def _attached(parts: Parts, path: str | Path | None) -> Iterator[Adapter | None]:
    """An adapter on the model for the length of a block."""
    if path is None:
        yield None
        return
    with _memory_errors():
        adapter = load_adapter(path, parts.transformer)
    try:
        yield adapter
    finally:
        adapter.detach_from_model()


def _set_strength(adapter: Adapter | None, strength: float | None) -> None:
    if adapter is not None and strength is not None:
        adapter.set_strength(strength)


def generate(parts: Parts, settings: GenerateSettings, job: Job | None = None) -> Generated:
    """Play one piece.

    The same settings give the same samples; the noise is drawn on the CPU, so other devices start from the same
    noise too. Length: `ceil(25 · duration_s)` latent frames of 0.04 s, as in diffusers. Raises UserError when the
    model computes values that are not finite, and Stopped between two steps when the job is asked to stop.
    """
    job = job or Job()
    labels = labels_of(settings)
    sampler = sampler_for(parts.checkpoint.variant, settings)
    _warn(parts, labels, sampler, settings, job)
    pipeline = build_pipeline(parts)
    noise = draw_noise(_frames(pipeline, settings.duration_s), parts.checkpoint.config.latent_width, settings.seed)
    kernels = attention_kernels(parts.transformer.device)
    sampling = job.stage("sample", sampler.steps, "steps")
    with sampling as stage, _evaluating(parts.transformer), kernels, _memory_errors():

        def after_step(_pipeline: Any, _index: int, _time: float, _tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            stage.advance()
            job.check_stop()
            return {}

        latents = pipeline(
            **prompt_fields(labels),
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance,
            shift=sampler.shift,
            latents=noise,
            output_type="latent",
            callback_on_step_end=after_step,
        ).audios[0]  # (T, C)
    check_latents(latents)
    with job.stage("decode", 1) as stage, _memory_errors():
        samples = decode_latents(parts.vae, latents)
        stage.advance()
    used = settings.changed(steps=sampler.steps, guidance=sampler.guidance, shift=sampler.shift)
    return Generated(samples, int(parts.vae.config.sampling_rate), settings.seed, used)


def labels_of(settings: GenerateSettings) -> PromptLabels:
    """The labels that `settings` ask for."""
    return PromptLabels(
        caption=settings.caption,
        lyrics=settings.lyrics,
        language=settings.language,
        bpm=settings.bpm,
        keyscale=settings.keyscale,
        timesignature=settings.timesignature,
        duration_s=settings.duration_s,
    )


def prompt_fields(labels: PromptLabels) -> dict[str, Any]:
    """The pipeline's arguments that make it write the very text of `text_prompt` and `lyric_prompt`."""
    return {
        "prompt": labels.caption,
        "lyrics": sung_text(labels),
        "vocal_language": language_code(labels),
        "bpm": labels.bpm,
        "keyscale": labels.keyscale,
        "timesignature": labels.timesignature,
        "audio_duration": labels.duration_s,
        "instruction": INSTRUCTION,
        "max_text_length": TEXT_TOKENS,
        "max_lyric_length": LYRIC_TOKENS,
    }


def sampler_for(variant: Variant, settings: GenerateSettings) -> Sampler:
    """The settings' sampler values, with the variant's where they are left open. Turbo models take no guidance."""
    chosen = variant.guidance if settings.guidance is None else settings.guidance
    return Sampler(
        steps=variant.steps if settings.steps is None else settings.steps,
        guidance=1.0 if variant.is_turbo else chosen,
        shift=variant.shift if settings.shift is None else settings.shift,
    )


def draw_noise(frames: int, latent_width: int, seed: int) -> Tensor:
    """The noise a piece starts from, drawn in fp32 on the CPU.  (1, frames, C)."""
    return torch.randn(1, frames, latent_width, generator=torch.Generator().manual_seed(seed))


def timestep_schedule(steps: int, shift: float) -> list[float]:
    """The times of the steps: from 1 (noise) down, without the final 0.

    `steps` equal parts u of [1, 0], moved by t = s·u / (1 + (s − 1)·u). For 8 steps and shift 1, 2 and 3 this gives
    the tables of the original turbo models.
    """
    u = torch.linspace(1.0, 0.0, steps + 1)
    return (shift * u / (1 + (shift - 1) * u))[:-1].tolist()


StepListener = Callable[[int, float, Tensor, Tensor], None]
"""Told index, time, the latents entering the step and the velocity that was applied."""


@torch.no_grad()
def sample_latents(
    transformer: AceStepTransformer1DModel,
    condition: Tensor,
    null_condition: Tensor,
    context: Tensor,
    noise: Tensor,
    sampler: Sampler,
    on_step: StepListener | None = None,
) -> Tensor:
    """The pipeline's sampling loop for conditions that are already encoded, such as stored ones.

    condition: (B, L, E); null_condition: (1, 1, E), used with guidance only; context: (B, T, 2 C); noise: (B, T, C),
    all moved to the transformer's device and dtype. Returns latents (B, T, C). Guidance is adaptive projected
    guidance (momentum -0.75, norm over time at most 2.5), with both predictions from one doubled batch.
    """
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    place: dict[str, Any] = {"device": transformer.device, "dtype": transformer.dtype}
    condition, context, latents = condition.to(**place), context.to(**place), noise.to(**place)
    guided = sampler.guidance > 1.0
    if guided:
        condition = torch.cat([condition, null_condition.to(**place).expand_as(condition)])
        context = torch.cat([context, context])
        momentum = MomentumBuffer(momentum=-0.75)
    scheduler = _scheduler()
    scheduler.set_timesteps(sigmas=timestep_schedule(sampler.steps, sampler.shift), device=transformer.device)
    with _evaluating(transformer), attention_kernels(transformer.device):
        for index, time in enumerate(scheduler.timesteps):
            entering = torch.cat([latents, latents]) if guided else latents
            t = float(time) * torch.ones(entering.shape[0], **place)
            velocity = transformer(
                hidden_states=entering,
                timestep=t,
                timestep_r=t,
                encoder_hidden_states=condition,
                context_latents=context,
                return_dict=False,
            )[0]
            if guided:
                conditional, unconditional = velocity.chunk(2)
                velocity = normalized_guidance(
                    conditional,
                    unconditional,
                    guidance_scale=sampler.guidance - 1.0,
                    momentum_buffer=momentum,
                    eta=0.0,
                    norm_threshold=2.5,
                    use_original_formulation=True,
                    norm_dim=(1,),
                )
            if on_step is not None:
                on_step(index, float(time), latents, velocity)
            latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
    return latents


def build_pipeline(parts: Parts) -> AceStepPipeline:
    """diffusers' pipeline around the loaded parts; nothing is copied."""
    from diffusers import AceStepPipeline

    pipeline = AceStepPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder.model,
        tokenizer=parts.text_encoder.tokenizer,
        transformer=parts.transformer,
        condition_encoder=parts.condition_encoder,
        scheduler=_scheduler(),
    )
    # diffusers also takes model_version "turbo" for the mark, which is the default text of any kind of checkpoint.
    pipeline.is_turbo = parts.checkpoint.variant.is_turbo
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)


def _frames(pipeline: AceStepPipeline, duration_s: float) -> int:
    return math.ceil(duration_s * pipeline.latents_per_second)


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Without dropout, also when a preview is played in the middle of training; afterwards as before."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _memory_errors() -> contextlib.AbstractContextManager[None]:
    return memory_told(
        "The device ran out of memory.", fix="Ask for a shorter piece, close other programs, or choose device cpu."
    )


def _warn(parts: Parts, labels: PromptLabels, sampler: Sampler, settings: GenerateSettings, job: Job) -> None:
    if metas_are_cut(parts.text_encoder, text_prompt(labels)):
        job.warn(
            f"The caption is too long: tempo, key and length fall behind the {TEXT_TOKENS} tokens the model reads."
        )
    if lyrics_are_cut(parts.text_encoder, lyric_prompt(labels)):
        job.warn(f"The lyrics are too long: only their first {LYRIC_TOKENS} tokens are sung.")
    language = language_code(labels)
    if language not in LANGUAGES:
        job.warn(f'The model does not know the language code "{language}".{did_you_mean(language, LANGUAGES)}')
    if settings.guidance not in (None, sampler.guidance):
        job.warn(f"Turbo models take no guidance; guidance {settings.guidance:g} is ignored.")


def check_latents(latents: Tensor) -> None:
    """Raise a UserError for latents that are not finite, or nothing but zeros."""
    if not torch.isfinite(latents).all():
        raise UserError(
            "The model computed values that are not finite numbers.",
            fix="Choose precision fp32; with an adapter, lower its strength or take an earlier checkpoint.",
        )
    if not latents.any():
        raise UserError("The model computed nothing but zeros.", fix="Check the model's files, or load another one.")
