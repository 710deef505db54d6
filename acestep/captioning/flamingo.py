"""Music Flamingo and Audio Flamingo 3: models that describe music at length, tempo and key included.

Their processor cuts a song into half-minute parts itself, up to the length it was made for. NVIDIA licenses the
published weights for research and other non-commercial use only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from acestep.captioning.contract import Answer, BackendFacts, Hearing, OpenBackend, SongToLabel
from acestep.captioning.listening import Listener
from acestep.captioning.local import SAMPLE_RATE, load_errors, load_model, model_folder, model_size, mono, place
from acestep.captioning.registry import model_name
from acestep.core.jobs import Job
from acestep.core.paths import read_json
from acestep.settings.caption import CaptionSettings

_DESCRIBE = (
    "Describe this track in full detail - tell me the genre, tempo, and key, then dive into the instruments, "
    "production style, and overall mood it creates."
)
"""The question the models were trained to answer (card of nvidia/music-flamingo-hf)."""

_CLASSES = {
    "musicflamingo": ("MusicFlamingoForConditionalGeneration", "MusicFlamingoProcessor"),
    "audioflamingo3": ("AudioFlamingo3ForConditionalGeneration", "AudioFlamingo3Processor"),
}
"""Classes by the "model_type" of config.json; the first Music Flamingo was published as the second kind."""


@dataclass(frozen=True)
class FlamingoBackend:
    """One of NVIDIA's Flamingo models through transformers."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        listener = _load(model_folder(model_name(self.facts, settings), job), settings, job)
        try:
            yield _Describer(listener, settings)
        finally:
            listener.close()


def music_flamingo() -> FlamingoBackend:
    """Descriptions with the genre, tempo and key they name."""
    return FlamingoBackend(
        BackendFacts(
            name="music-flamingo",
            title="Music Flamingo",
            origin="model",
            gives=frozenset({"caption", "genre", "bpm", "keyscale", "timesignature"}),
            hears=Hearing(SAMPLE_RATE, 1),
            model="nvidia/music-flamingo-2601-hf",
            memory_gib=18.0,
            packages=("transformers",),
        )
    )


class _Describer:
    def __init__(self, listener: Listener, settings: CaptionSettings) -> None:
        self._listener = listener
        self._settings = settings

    def label(self, song: SongToLabel) -> Answer:
        content = [{"type": "text", "text": _DESCRIBE}, {"type": "audio", "path": "song"}]
        signal = mono(cast(np.ndarray, song.samples))
        reply = self._listener.ask([{"role": "user", "content": content}], signal, self._settings.max_tokens)
        return reply.caption_answer(song.wanted)


def _load(folder: Path, settings: CaptionSettings, job: Job) -> Listener:
    """Model and processor of a folder. Raises UserError for another kind of model."""
    placement = place(model_size(folder), settings)
    job.say(f"Loading {folder.name} on {placement}.")
    with load_errors(folder):
        import transformers

        kind = read_json(folder / "config.json", "the model's configuration").get("model_type")
        if kind not in _CLASSES:
            raise ValueError(f'its model_type is "{kind}" and none of {", ".join(_CLASSES)}')
        model_class, processor_class = (getattr(transformers, name) for name in _CLASSES[kind])
        model = load_model(model_class, folder, placement)
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        longest_s = float(processor.max_audio_len)
    return Listener(model, processor, longest_s, settings, job)
