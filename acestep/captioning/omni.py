"""ACE-Step's captioner and transcriber: two Qwen2.5-Omni models that hear songs, one for descriptions, one for lyrics.

Only the part that hears and writes is loaded ("thinker"); speaking and seeing are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from acestep.captioning import tasks
from acestep.captioning.contract import Answer, BackendFacts, Hearing, OpenBackend, SongToLabel
from acestep.captioning.listening import Listener, Reply
from acestep.captioning.local import (
    SAMPLE_RATE,
    load_errors,
    load_model,
    model_folder,
    model_size,
    mono,
    place,
    windows,
)
from acestep.captioning.registry import model_name
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

_UNUSED = ("talker.", "token2wav.", "thinker.visual.", "visual.")


@dataclass(frozen=True)
class OmniBackend:
    """One of the two models, by its facts."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        listener = _load(model_folder(model_name(self.facts, settings), job), settings, job)
        opened = _Transcriber(listener, settings) if "lyrics" in self.facts.gives else _Captioner(listener, settings)
        try:
            yield opened
        finally:
            listener.close()


def captioner() -> OmniBackend:
    """Descriptions and metadata in one inference per song."""
    return OmniBackend(
        BackendFacts(
            name="ace-captioner",
            title="ACE-Step captioner (Qwen2.5-Omni)",
            origin="model",
            gives=tasks.CAPTIONER_GIVES,
            hears=Hearing(SAMPLE_RATE, 1),
            model="ACE-Step/acestep-captioner",
            memory_gib=18.0,
            packages=("transformers",),
        )
    )


def transcriber() -> OmniBackend:
    """Lyrics with section tags, and their language."""
    return OmniBackend(
        BackendFacts(
            name="ace-transcriber",
            title="ACE-Step transcriber (Qwen2.5-Omni)",
            origin="model",
            gives=tasks.TRANSCRIBER_GIVES,
            hears=Hearing(SAMPLE_RATE, 1),
            model="ACE-Step/acestep-transcriber",
            memory_gib=18.0,
            packages=("transformers",),
        )
    )


class _Captioner:
    def __init__(self, listener: Listener, settings: CaptionSettings) -> None:
        self._listener = listener
        self._settings = settings

    def label(self, song: SongToLabel) -> Answer:
        question, most_tokens = tasks.caption_task(song.wanted, self._settings.max_tokens)
        reply = self._listener.ask(_conversation(question), _signal(song), most_tokens)
        return reply.caption_answer(song.wanted)


class _Transcriber:
    def __init__(self, listener: Listener, settings: CaptionSettings) -> None:
        self._listener = listener
        self._settings = settings

    def label(self, song: SongToLabel) -> Answer:
        window_s = min(self._settings.window_s, self._listener.longest_s)
        replies = [self._transcribe(window) for window in windows(_signal(song), window_s)]
        cut_off = sum(not reply.is_whole for reply in replies)
        answer = tasks.lyrics_answer([reply.text for reply in replies], song.wanted, cut_off=cut_off)
        usage = {"audio_s": sum(reply.heard_s for reply in replies), "tokens": sum(reply.tokens for reply in replies)}
        return replace(answer, usage=usage)

    def _transcribe(self, window: np.ndarray) -> Reply:
        most_tokens = tasks.lyrics_tokens(len(window) / SAMPLE_RATE)
        return self._listener.ask(_conversation(tasks.TRANSCRIBE), window, most_tokens)


def _load(folder: Path, settings: CaptionSettings, job: Job) -> Listener:
    """Model and processor of a folder. Both whole Qwen2.5-Omni checkpoints and saved thinkers are understood."""
    placement = place(model_size(folder, _UNUSED), settings)
    job.say(f"Loading {folder.name} on {placement}.")
    with load_errors(folder):
        from transformers import Qwen2_5OmniThinkerForConditionalGeneration

        model = load_model(Qwen2_5OmniThinkerForConditionalGeneration, folder, placement, unneeded="model.visual.")
        model.model.visual = None
        processor = _processor(folder)
        longest_s = processor.feature_extractor.n_samples / SAMPLE_RATE
    return Listener(model, processor, longest_s, settings, job)


def _processor(folder: Path) -> Any:
    """The processor without eyes: those would need torchvision, and nothing here looks at pictures."""
    from transformers import Qwen2_5OmniProcessor
    from transformers.processing_utils import ProcessorMixin

    class HearingProcessor(Qwen2_5OmniProcessor):
        def __init__(self, feature_extractor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=chat_template)
            for kind in ("image", "audio", "video"):
                setattr(self, f"{kind}_token", getattr(tokenizer, f"{kind}_token"))
                setattr(self, f"{kind}_token_id", getattr(tokenizer, f"{kind}_token_id"))

    return HearingProcessor.from_pretrained(folder, local_files_only=True)


def _conversation(question: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": tasks.SYSTEM}]},
        {"role": "user", "content": [{"type": "text", "text": question}, {"type": "audio", "audio": "song"}]},
    ]


def _signal(song: SongToLabel) -> np.ndarray:
    return mono(cast(np.ndarray, song.samples))
