"""Previews: what the adapter in training sounds like, played by the transformer that is trained.

    samples/step_000120/1_42_base.wav              first caption, seed 42, without the adapter
    samples/step_000120/1_42_strength_1_00.wav     the same noise with it

A preview changes nothing of the run: generators, weights, strength and modes are put back, and whatever goes wrong
is a warning. Of the models it needs besides the transformer, the encoders are loaded once, for the conditions, and
the VAE for as long as it decodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acestep.audio.write import write_audio
from acestep.core.device import DeviceChoice, free_memory, lacks_memory
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.core.words import counted
from acestep.generate import check_latents, draw_noise, sample_latents, sampler_for
from acestep.model.checkpoints import Checkpoint
from acestep.model.condition import join_condition
from acestep.model.facts import LATENT_RATE, LYRIC_TOKENS, TEXT_TOKENS
from acestep.model.prompt import PromptLabels, lyric_prompt, read_prompts, text_prompt
from acestep.preprocess.encoders import Encoders
from acestep.preprocess.plan import SongPrompts
from acestep.preprocess.store import variant_name
from acestep.settings import GenerateSettings, TrainSettings

if TYPE_CHECKING:
    from acestep.adapters import TriggerTag
    from acestep.preprocess.store import StoredSong
    from acestep.training.loop import Session


@dataclass(frozen=True)
class Prompt:
    """One caption to play, counted from 1, with its encoded condition (1, L, E) on the CPU."""

    number: int
    caption: str
    condition: Tensor


@dataclass(frozen=True)
class Piece:
    """One file to make. Strength None is the model without the adapter."""

    prompt: Prompt
    seed: int
    strength: float | None

    @property
    def name(self) -> str:
        label = "base" if self.strength is None else f"strength_{self.strength:.2f}".replace(".", "_")
        return f"{self.prompt.number}_{self.seed}_{label}"


class Previews:
    """Plays the previews of one run. Nothing is loaded before the first is due."""

    def __init__(self, checkpoint: Checkpoint, choice: DeviceChoice) -> None:
        self._checkpoint = checkpoint
        self._choice = choice
        self._prompts: list[Prompt] = []
        self._base: dict[tuple[int, int], Tensor] = {}  # it sounds the same at every step

    def play(self, session: Session, job: Job) -> None:
        """Play all pieces with the adapter as it is now. Trouble is written to the log as a warning."""
        step = session.state.step
        try:
            with _training_untouched(session):
                self._play(session, job)
        except Stopped:
            session.record.warn(step, f"The previews of step {step} were broken off to stop the run.")
        except UserError as error:
            session.record.warn(step, f"No preview at step {step}. {error}")
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            session.record.warn(
                step, f"No preview at step {step}: the device ran out of memory. Training goes on; play shorter ones."
            )
        finally:
            free_memory()

    def _play(self, session: Session, job: Job) -> None:
        free_memory()
        if not self._prompts:
            self._prompts = self._encode(session)
        played: list[tuple[Piece, Tensor]] = []
        for piece in _pieces(self._prompts, session.settings):
            try:
                played.append((piece, self._latents(session, job, piece)))
            except UserError as error:
                session.record.warn(session.state.step, f"The preview {piece.name} is left out. {error}")
        if played:
            self._write(session, played)
            job.say(f"step {session.state.step}: {counted(len(played), 'previews')} in {_folder(session)}")

    def _latents(self, session: Session, job: Job, piece: Piece) -> Tensor:
        """The latents of a piece, (T, C) fp32 on the CPU."""
        key = (piece.prompt.number, piece.seed)
        if piece.strength is None and key in self._base:
            return self._base[key]
        settings, model = session.settings, session.model
        frames = math.ceil(settings.preview_duration_s * LATENT_RATE)
        wanted = GenerateSettings(
            steps=settings.preview_steps, guidance=settings.preview_guidance, shift=settings.preview_shift
        )
        session.adapter.set_strength(piece.strength or 0.0)
        latents = sample_latents(
            session.adapter.transformer,  # type: ignore[arg-type]  # adapters take any module; a run trains this one
            piece.prompt.condition,
            model.null_condition,
            model.context(frames),
            draw_noise(frames, self._checkpoint.config.latent_width, piece.seed),
            sampler_for(self._checkpoint.variant, wanted),
            on_step=lambda *_: job.check_stop(),
        )[0]
        check_latents(latents)
        latents = latents.float().cpu()
        if piece.strength is None:
            self._base[key] = latents
        return latents

    def _write(self, session: Session, played: list[tuple[Piece, Tensor]]) -> None:
        from acestep.model.loading import load_vae
        from acestep.model.vae import decode_latents

        vae = load_vae(self._checkpoint, self._choice.dtype, self._choice.torch_device)
        rate = int(vae.config.sampling_rate)
        for piece, latents in played:
            samples = decode_latents(vae, latents)
            path = _folder(session) / f"{piece.name}.{session.settings.preview_format}"
            write_audio(path, samples, rate)
            session.record.event(
                "preview",
                step=session.state.step,
                path=path.relative_to(session.run.path).as_posix(),
                caption=piece.prompt.caption,
                seed=piece.seed,
                strength=piece.strength or 0.0,
                base=piece.strength is None,
                seconds=round(samples.shape[-1] / rate, 3),
            )

    def _encode(self, session: Session) -> list[Prompt]:
        """Conditions of all captions; the encoders are let go at once."""
        labels = preview_labels(session.settings, session.tag, session.data.songs_to_learn[0].stored)
        encoders = Encoders(self._checkpoint, self._choice, {})
        try:
            texts = tuple(text_prompt(one) for one in labels)
            states = encoders.text_states(SongPrompts(texts, {}, lyric_prompt(labels[0])))
            tensors = encoders.condition(states)
        finally:
            encoders.let_go()
        if states.metas_cut:
            session.record.warn(
                session.state.step,
                f"A preview's caption is too long: tempo and key fall behind the {TEXT_TOKENS} tokens the model reads.",
            )
        if states.lyrics_cut:
            session.record.warn(
                session.state.step, f"The previews' lyrics are too long: only their first {LYRIC_TOKENS} tokens count."
            )
        conditions = [join_condition(tensors["head"][None], tensors[f"text.{n}"][None]) for n in range(len(labels))]
        return [Prompt(n + 1, labels[n].caption, condition) for n, condition in enumerate(conditions)]


def preview_labels(settings: TrainSettings, tag: TriggerTag, song: StoredSong) -> list[PromptLabels]:
    """What the previews are asked for, trigger word included. UserError when there is nothing to ask for."""
    if settings.preview_captions:
        bases = [PromptLabels(tag.in_caption(caption)) for caption in settings.preview_captions]
    else:
        own = read_prompts(song.prompts[song.variants[variant_name("caption", tag.position)]], song.lyric_prompt)
        if own is None:
            raise UserError(f"{song.title} has no caption that could be played.", fix="Give preview_captions.")
        bases = [own]
    changes: dict[str, Any] = {
        "lyrics": settings.preview_lyrics,
        "language": settings.preview_language,
        "bpm": settings.preview_bpm,
        "keyscale": settings.preview_keyscale,
        "timesignature": settings.preview_timesignature,
    }
    given = {name: value for name, value in changes.items() if value}
    return [replace(base, **given, duration_s=settings.preview_duration_s) for base in bases]


def _pieces(prompts: list[Prompt], settings: TrainSettings) -> Iterator[Piece]:
    strengths = [*([None] if settings.preview_base else []), *settings.preview_strengths]
    for prompt in prompts:
        for seed in settings.preview_seeds:
            yield from (Piece(prompt, seed, strength) for strength in strengths)


def _folder(session: Session) -> Path:
    return session.run.samples / f"step_{session.state.step:06d}"


@contextmanager
def _training_untouched(session: Session) -> Iterator[None]:
    """The weights to use are in the adapter while the block lasts; then everything is as before."""
    strength = session.adapter.strength
    flags = [parameter.requires_grad for parameter in session.adapter.parameters()]
    with _generators_kept(session.model.device), session.model.unmasked(), session.averaging.in_use(), torch.no_grad():
        try:
            yield
        finally:
            session.adapter.set_strength(strength)
            for parameter, flag in zip(session.adapter.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """Torch's global generators, on the CPU and on the device, are afterwards where they were."""
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        index = module.current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index], device_type=device.type):
            yield
    else:
        with torch.random.fork_rng(devices=[]):
            yield
