"""Labels by any server with OpenAI's chat protocol that takes sound, such as vLLM or SGLang with ACE-Step's captioner.

One call gives caption and metadata, a second one lyrics and language where they are wanted. Sent is the sound alone,
mono at 16 kHz.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel
from pydantic import Field as Limits

from acestep.captioning.contract import FIELDS, Answer, BackendFacts, Field, Guess, Hearing, SongToLabel
from acestep.captioning.openai_client import ask_openai, openai_client
from acestep.captioning.parsing import parse_caption, parse_transcript
from acestep.captioning.services import OPEN_SERVER, Service, encoded, pieces, service_of
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.facts import INSTRUMENTAL
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import openai

HEARS = Hearing(16_000, 1)

FACTS = BackendFacts(
    name=OPEN_SERVER,
    title="OpenAI-compatible server",
    origin="service",
    gives=frozenset(FIELDS) - {"bpm"},
    hears=HEARS,
    key_variable="OPENAI_COMPATIBLE_API_KEY",
    key_needed=False,
    network=True,
    parallel=True,
    packages=("openai",),
)

LONGEST_S = 290.0
"""Qwen2.5-Omni, and so the captioner, drops what comes after 300 seconds."""

LYRICS_TOKENS_A_SECOND = 8

# the wording ACE-Step's captioner and transcriber were trained with (their model cards)
CAPTION_TASK = "*Task* Describe this audio in detail"
LYRICS_TASK = "*Task* Transcribe this audio in detail"
# no example values: models repeat them
_METADATA = """
Then add three lines, each with what you hear, or "unknown":
Key: the tonic and major or minor
Time signature: beats in a bar, a slash, the note value
Genre: the closest genres"""
_QWEN_SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
_QWEN = re.compile(r"qwen|ace-?step", re.IGNORECASE)
_FROM_CAPTION: frozenset[Field] = frozenset({"caption", "genre", "keyscale", "timesignature"})


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice] = Limits(min_length=1)
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class OpenAICompatible:
    """A server of the user's own."""

    facts = FACTS

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenServer]:
        """The client. Raises UserError without an address, and where the model must be chosen."""
        service = service_of(FACTS, settings, keys, job)
        if not service.base_url:
            raise UserError("The OpenAI-compatible server has no address.", fix="Set base_url, http://HOST:8000/v1.")
        with openai_client(service, settings) as client:
            yield OpenServer(client, service, settings)


class OpenServer:
    """A client that is ready to ask."""

    def __init__(self, client: openai.OpenAI, service: Service, settings: CaptionSettings) -> None:
        self._client, self._service, self._settings = client, service, settings
        caption_model = settings.caption_model if settings.caption_by == OPEN_SERVER else ""
        lyrics_model = settings.lyrics_model if settings.lyrics_by == OPEN_SERVER else ""
        only = "" if caption_model and lyrics_model else (caption_model or lyrics_model or self._served_model())
        self._caption_model, self._lyrics_model = caption_model or only, lyrics_model or only
        # OpenAI and vLLM take the first form, SGLang takes the second; what has worked once stays
        self._forms: tuple[str, ...] = ("input_audio", "audio_url")

    def label(self, song: SongToLabel) -> Answer:
        """The wanted fields of a song, from one or two calls."""
        assert song.samples is not None, "the batch decodes songs for this backend"
        rate = HEARS.sample_rate
        parts = [part for _, part in pieces(song.samples, rate, LONGEST_S)]
        values: dict[Field, Any] = {}
        notes: list[str] = []
        usage: dict[str, float] = {"audio_s": song.duration_s, "input_tokens": 0, "output_tokens": 0}
        if song.wanted & _FROM_CAPTION:
            task = CAPTION_TASK + (_METADATA if song.wanted & (_FROM_CAPTION - {"caption"}) else "")
            text, is_cut = self._ask(self._caption_model, task, parts[0], self._settings.max_tokens, usage)
            told = parse_caption(text)
            values |= told.values
            notes += told.notes
            notes += ["The caption may be cut off; raise max_tokens."] if is_cut else []
            notes += [f"The caption is of the first {len(parts[0][0]) / rate:.0f} s."] if len(parts) > 1 else []
        if song.wanted & {"lyrics", "language"}:
            values |= self._lyrics(parts, rate, notes, usage)
        return Answer(
            {name: Guess(value) for name, value in values.items() if name in song.wanted & FACTS.gives},
            notes=tuple(dict.fromkeys(notes)),
            usage=usage,
        )

    def _lyrics(
        self, parts: list[np.ndarray], rate: int, notes: list[str], usage: dict[str, float]
    ) -> dict[Field, Any]:
        """Lyrics of all parts one after the other, and the first language told."""
        sung: list[str] = []
        values: dict[Field, Any] = {}
        for part in parts:
            room = max(512, round(part.shape[1] / rate * LYRICS_TOKENS_A_SECOND))
            text, is_cut = self._ask(self._lyrics_model, LYRICS_TASK, part, room, usage)
            told = parse_transcript(text)
            notes += told.notes
            notes += ["The lyrics may be cut off."] if is_cut else []
            if "language" in told.values:
                values.setdefault("language", told.values["language"])
            if "lyrics" in told.values:
                sung.append(told.values["lyrics"])
        words = [lyrics for lyrics in sung if lyrics != INSTRUMENTAL]
        # of a part that gave nothing it is not known that nobody sings there
        if words or (sung and len(sung) == len(parts)):
            values["lyrics"] = "\n\n".join(words) or INSTRUMENTAL
        return values

    def _ask(
        self, model: str, task: str, part: np.ndarray, max_tokens: int, usage: dict[str, float]
    ) -> tuple[str, bool]:
        """What the model says about a part [1, N], and whether it was cut off by `max_tokens`."""
        sound = base64.b64encode(encoded(part, HEARS.sample_rate, "wav")).decode("ascii")
        forms = self._forms
        for form in forms:
            try:
                completion = self._complete(model, task, sound, form, max_tokens)
            except UserError as error:
                if type(error) is not UserError or form == forms[-1]:  # only a refused request may be one of form
                    raise
                continue
            self._forms = (form,)
            break
        if completion.usage:
            usage["input_tokens"] += completion.usage.prompt_tokens
            usage["output_tokens"] += completion.usage.completion_tokens
        choice = completion.choices[0]
        return choice.message.content or "", choice.finish_reason == "length"

    def _complete(self, model: str, task: str, sound: str, form: str, max_tokens: int) -> _Completion:
        import openai

        content: dict[str, Any] = {"data": sound, "format": "wav"}
        if form == "audio_url":
            content = {"url": f"data:audio/wav;base64,{sound}"}
        messages: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": task}, {"type": form, form: content}]}
        ]
        if _QWEN.search(model):
            messages.insert(0, {"role": "system", "content": _QWEN_SYSTEM})
        completion = ask_openai(
            self._service,
            lambda: self._client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=max_tokens,
                temperature=self._settings.temperature,
                seed=self._settings.seed if self._settings.temperature else openai.omit,
            ),
        )
        return self._service.fitting(_Completion, completion)

    def _served_model(self) -> str:
        """The one model of the server. Raises UserError where there are several."""
        page = ask_openai(self._service, self._client.models.list)
        names = [model.id for model in self._service.fitting(_Models, page).data]
        if len(names) != 1:
            raise UserError(
                f"The server has {len(names)} models, and none is chosen.",
                fix="Set caption_model and lyrics_model.",
                detail=", ".join(names[:20]),
            )
        return names[0]


def backend() -> OpenAICompatible:
    """The backend, for the registry."""
    return OpenAICompatible()
