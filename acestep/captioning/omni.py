"""ACE-Step's captioner and transcriber: two Qwen2.5-Omni models that hear songs, one for descriptions, one for lyrics.

Only the part that hears and writes is loaded ("thinker"); speaking and seeing are left out. The task wordings are
those the models were trained with (their cards on the Hub).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from acestep.captioning.contract import Answer, BackendFacts, Field, Guess, Hearing, OpenBackend, SongToLabel
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
from acestep.captioning.lyrics import join_lyrics
from acestep.captioning.parsing import parse_caption, parse_transcript
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
_DESCRIBE = "*Task* Describe this audio in detail"
_TRANSCRIBE = "*Task* Transcribe this audio in detail"
_LINES: dict[Field, str] = {
    "bpm": "BPM: beats per minute as a number",
    "keyscale": "Key: note and major or minor",
    "timesignature": "Time signature: beats of a bar and note value",
    "genre": "Genre: one to three genres",
}
"""The lines asked for beside the description. No line shows a value: models repeat what they are shown."""

_LYRICS_TOKENS_A_SECOND = 8  # fast rap, and scripts with a token for each character
_FEWEST_LYRICS_TOKENS = 96  # headings, tags, and the odd line of a short window
_UNUSED = ("talker.", "token2wav.", "thinker.visual.", "visual.")


@dataclass(frozen=True)
class OmniBackend:
    """One of the two models, by its facts."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        writes_lyrics = "lyrics" in self.facts.gives
        name = (settings.lyrics_model if writes_lyrics else settings.caption_model) or self.facts.model
        listener = _load(model_folder(name, job), settings, job)
        opened = _Transcriber(listener, settings) if writes_lyrics else _Captioner(listener, settings)
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
            gives=frozenset({"caption", *_LINES}),
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
            gives=frozenset({"lyrics", "language"}),
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
        extra = [line for field, line in _LINES.items() if field in song.wanted]
        question = _DESCRIBE
        if extra:
            wishes = "\n".join(f"- {line}" for line in extra)
            question += f"\nAfter the description, add these lines, with unknown where you cannot tell:\n{wishes}"
        most_tokens = self._settings.max_tokens + 16 * len(extra)
        reply = self._listener.ask(_conversation(question), _signal(song), most_tokens)
        parsed = parse_caption(reply.text)
        notes = [*parsed.notes, *reply.notes_on_hearing()]
        if not reply.is_whole:
            notes.append("The description was cut off at its longest; raise max_tokens.")
        values = {field: Guess(value) for field, value in parsed.values.items() if field in song.wanted}
        return Answer(values, notes=tuple(notes), usage=_usage([reply]))


class _Transcriber:
    def __init__(self, listener: Listener, settings: CaptionSettings) -> None:
        self._listener = listener
        self._settings = settings

    def label(self, song: SongToLabel) -> Answer:
        replies = [self._transcribe(window) for window in windows(_signal(song), self._settings.window_s)]
        parts = [parse_transcript(reply.text) for reply in replies]
        values: dict[Field, Guess] = {}
        if "lyrics" in song.wanted and (lyrics := join_lyrics([part.values.get("lyrics", "") for part in parts])):
            values["lyrics"] = Guess(lyrics)
        heard = Counter(part.values["language"] for part in parts if "language" in part.values)
        if "language" in song.wanted and heard:
            ranks = heard.most_common(2)
            runner_up = ranks[1][0] if len(ranks) > 1 else None
            values["language"] = Guess(ranks[0][0], ranks[0][1] / heard.total(), runner_up)
        notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        if cut := sum(not reply.is_whole for reply in replies):
            where = "" if len(replies) == 1 else f" in {cut} of {len(replies)} parts of the song"
            notes.append(f"The lyrics may be cut off{where}.")
        return Answer(values, notes=tuple(notes), usage=_usage(replies))

    def _transcribe(self, window: np.ndarray) -> Reply:
        """The answer for one window, with room for as many words as can be sung in it."""
        duration_s = len(window) / SAMPLE_RATE
        most_tokens = _FEWEST_LYRICS_TOKENS + math.ceil(_LYRICS_TOKENS_A_SECOND * duration_s)
        return self._listener.ask(_conversation(_TRANSCRIBE), window, most_tokens)


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
        {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
        {"role": "user", "content": [{"type": "text", "text": question}, {"type": "audio", "audio": "song"}]},
    ]


def _signal(song: SongToLabel) -> np.ndarray:
    return mono(cast(np.ndarray, song.samples))


def _usage(replies: list[Reply]) -> dict[str, float]:
    return {"audio_s": sum(reply.heard_s for reply in replies), "tokens": sum(reply.tokens for reply in replies)}
