"""Captions from tags: CLAP hears the song and says which of given words fit it best.

Nothing is written freely, so nothing is made up: a caption is the fitting tags in a fixed order. Tempo and key are
not asked for; an embedding tells them badly, and analysis measures them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from acestep.captioning.contract import Answer, BackendFacts, Field, Guess, Hearing, OpenBackend, SongToLabel
from acestep.captioning.local import load_errors, load_model, model_folder, model_size, place, quiet_library
from acestep.captioning.tags import Dimension, Tags, read_tags
from acestep.core.device import free_memory
from acestep.core.errors import UserError
from acestep.core.jobs import Job, state_folder
from acestep.core.paths import atomic_file
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_RATE = 48_000
"""Hz at which CLAP hears."""

_BATCH = 8  # windows at a time; steady memory, and a stop is never far
_TEXTS_AT_ONCE = 64
_AUDIBLE = 0.01  # of the loudest window's level: 40 dB below it there is nothing to hear
_ABOVE_CHANCE = 2.0
"""How many times the odds of a blind guess among its dimension a tag must have to be told."""


@dataclass(frozen=True)
class ClapBackend:
    """CLAP through transformers."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        tags = read_tags(settings.tags_file)  # first: a mistake in it is noticed before the long load
        opened = _Tagger(model_folder(settings.caption_model or self.facts.model, job), tags, settings, job)
        try:
            yield opened
        finally:
            opened.close()


def clap_tags() -> ClapBackend:
    """Tags out of a list that may be edited."""
    return ClapBackend(
        BackendFacts(
            name="clap-tags",
            title="Tags by CLAP",
            origin="model",
            gives=frozenset({"caption", "genre"}),
            hears=Hearing(SAMPLE_RATE, 1),
            model="laion/larger_clap_music",
            memory_gib=2.0,
            packages=("transformers",),
        )
    )


@dataclass(frozen=True)
class Choice:
    """The tags of one dimension that fit, likeliest first, with their probabilities; and the best of the others."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    runner_up: str


def choose(dimension: Dimension, logits: np.ndarray) -> Choice:
    """Probabilities of a dimension's labels from their logits [labels], and those that stand out.

    The softmax over one dimension is what the model was trained for: picking the right text among others, with the
    sharpness (logit scale) it learned for that. A label told has at least twice the odds of a blind guess.
    """
    odds = np.exp(logits - logits.max())
    probabilities = odds / odds.sum()
    order = [int(index) for index in np.argsort(-probabilities, kind="stable")]
    blind_odds = 1 / (len(order) - 1)
    least = _ABOVE_CHANCE * blind_odds / (1 + _ABOVE_CHANCE * blind_odds)
    chosen = [index for index in order[: dimension.top] if probabilities[index] >= least]
    return Choice(
        tuple(dimension.labels[index] for index in chosen),
        tuple(float(probabilities[index]) for index in chosen),
        next((dimension.labels[index] for index in order if index not in chosen), ""),
    )


def compose(tags: Tags, choices: Mapping[str, Choice]) -> str:
    """The caption: dimensions in the order of the file, several tags of one joined by "and"."""
    told = [(dimension, choices[dimension.name].labels) for dimension in tags.dimensions]
    return ", ".join(dimension.caption.replace("{}", " and ".join(labels)) for dimension, labels in told if labels)


def windows(signal: np.ndarray, longest: int) -> list[np.ndarray]:
    """The whole signal [N] in parts of `longest` samples; they overlap so far that the last is as long as the others.

    Parts far below the loudest one are left out: the model would hear noise.
    """
    if len(signal) <= longest:
        return [signal]
    count = math.ceil(len(signal) / longest)
    starts = np.linspace(0, len(signal) - longest, count).round().astype(int)
    parts = [signal[start : start + longest] for start in starts]
    levels = np.array([np.sqrt(np.mean(np.square(part, dtype=np.float64))) for part in parts])
    return [part for part, level in zip(parts, levels, strict=True) if level >= _AUDIBLE * levels.max()]


class _Tagger:
    """A loaded CLAP and the embeddings of all tags."""

    def __init__(self, folder: Path, tags: Tags, settings: CaptionSettings, job: Job) -> None:
        self._tags = tags
        self._job = job
        # Small as it is, the model is neither quantized nor rounded unless told: its scale magnifies every error.
        precision = "fp32" if settings.precision == "auto" else settings.precision
        placement = place(model_size(folder), settings.changed(quantize="none", precision=precision))
        job.say(f"Loading {folder.name} on {placement}.")
        with load_errors(folder):
            from transformers import ClapModel, ClapProcessor

            self._model = load_model(ClapModel, folder, placement)
            self._processor = ClapProcessor.from_pretrained(folder, local_files_only=True)
            rate = self._processor.feature_extractor.sampling_rate
            if rate != SAMPLE_RATE:
                raise ValueError(f"it hears at {rate} Hz instead of {SAMPLE_RATE}")
        self._embeddings = self._text_embeddings(folder)

    def close(self) -> None:
        self._model = self._processor = self._embeddings = cast(Any, None)
        free_memory()

    def label(self, song: SongToLabel) -> Answer:
        signal = cast(np.ndarray, song.samples)[0]
        if not signal.any():
            raise UserError(f"{song.path.name} is silent.", fix="Remove it from the folder.")
        logits = self._logits(signal)
        choices = {it.name: choose(it, logits[it.name]) for it in self._tags.dimensions}
        values: dict[Field, Guess] = {}
        told = [probability for choice in choices.values() for probability in choice.probabilities]
        if told:
            values["caption"] = Guess(compose(self._tags, choices), sum(told) / len(told))
        genre = choices.get("genre")
        if genre is not None and genre.labels:
            values["genre"] = Guess(", ".join(genre.labels), genre.probabilities[0], genre.runner_up or None)
        notes = () if told else ("None of the tags stands out from the others.",)
        given = {name: guess for name, guess in values.items() if name in song.wanted}
        return Answer(given, notes=notes, usage={"audio_s": len(signal) / SAMPLE_RATE})

    def _logits(self, signal: np.ndarray) -> dict[str, np.ndarray]:
        """Logits [labels] of every dimension: the mean over the windows of the song.

        Window embeddings are averaged and not brought back to length one, so a song whose parts differ is told with
        less confidence.
        """
        import torch

        extractor = self._processor.feature_extractor
        parts = windows(signal, int(extractor.nb_max_samples))
        embeddings = []
        for first in range(0, len(parts), _BATCH):
            self._job.check_stop()
            heard = extractor(parts[first : first + _BATCH], sampling_rate=SAMPLE_RATE, return_tensors="pt")
            # The extractor marks one short part at random as long; none is.
            is_longer = torch.zeros(len(heard["input_features"]), 1, dtype=torch.bool, device=self._model.device)
            features = heard["input_features"].to(self._model.device, self._model.dtype)
            with torch.inference_mode():
                found = self._model.get_audio_features(input_features=features, is_longer=is_longer)
            embeddings.append(found.pooler_output.float())
        song = torch.cat(embeddings).mean(dim=0)
        scale = float(self._model.logit_scale_a.detach().exp())
        return {name: (scale * texts @ song).cpu().numpy() for name, texts in self._embeddings.items()}

    def _text_embeddings(self, folder: Path) -> dict[str, Tensor]:
        """Unit vectors [labels, D] of every dimension; kept on disk for the same model and the same tags."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        from acestep.model.identity import folder_fingerprint

        name = f"{folder_fingerprint(folder)}-{self._tags.content_hash}-{self._model.dtype}.safetensors"
        file = state_folder() / "tag-embeddings" / name
        known: dict[str, Tensor] | None = None
        with contextlib.suppress(OSError, SafetensorError):
            known = load_file(file)
        if known is None or {*known} != {it.name for it in self._tags.dimensions}:
            known = {it.name: self._embed(it) for it in self._tags.dimensions}
            with contextlib.suppress(UserError), atomic_file(file) as temporary:  # a full disk only costs time
                save_file({key: value.cpu() for key, value in known.items()}, temporary)
        return {key: value.to(self._model.device) for key, value in known.items()}

    def _embed(self, dimension: Dimension) -> Tensor:
        """Each label in the words of all templates, averaged: the ensemble of Radford et al. 2021, section 3.1.4."""
        import torch
        from torch.nn.functional import normalize

        texts = [template.replace("{}", label) for label in dimension.labels for template in dimension.templates]
        found = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            self._job.check_stop()
            with quiet_library(), torch.inference_mode():
                tokens = self._processor.tokenizer(
                    texts[first : first + _TEXTS_AT_ONCE], padding=True, truncation=True, return_tensors="pt"
                ).to(self._model.device)
                features = self._model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            found.append(features.pooler_output.float())
        by_label = torch.cat(found).unflatten(0, (len(dimension.labels), len(dimension.templates)))
        return normalize(by_label.mean(dim=1), dim=-1)
