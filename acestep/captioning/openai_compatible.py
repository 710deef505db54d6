"""Labels by any server with OpenAI's chat protocol that takes sound, such as vLLM or SGLang with ACE-Step's captioner.

One call gives caption and metadata, a second one lyrics and language where they are wanted. Sent is the sound alone,
mono at 16 kHz.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import BaseModel
from pydantic import Field as Limits

from acestep.captioning import tasks
from acestep.captioning.contract import Answer, BackendFacts, Hearing, SongToLabel
from acestep.captioning.local import SAMPLE_RATE, excerpts, mono, windows
from acestep.captioning.openai_client import ask_openai, openai_client
from acestep.captioning.services import OPEN_SERVER, Service, encoded, service_of
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import openai

FACTS = BackendFacts(
    name=OPEN_SERVER,
    title="OpenAI-compatible server",
    origin="service",
    gives=tasks.CAPTIONER_GIVES | tasks.TRANSCRIBER_GIVES,
    hears=Hearing(SAMPLE_RATE, 1),
    key_variable="OPENAI_COMPATIBLE_API_KEY",
    key_needed=False,
    network=True,
    parallel=True,
    packages=("openai",),
)

LONGEST_S = 290.0
"""Qwen2.5-Omni, and so the captioner, drops what comes after 300 seconds."""

_QWEN = re.compile(r"qwen|ace-?step", re.IGNORECASE)


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
        signal = mono(cast(np.ndarray, song.samples))
        usage: dict[str, float] = {"audio_s": song.duration_s, "input_tokens": 0, "output_tokens": 0}
        answers = []
        if song.wanted & tasks.CAPTIONER_GIVES:
            heard = excerpts(signal, LONGEST_S, self._settings.window_s)
            whole = np.concatenate(heard)
            question, room = tasks.caption_task(song.wanted, self._settings.max_tokens)
            text, is_whole = self._ask(self._caption_model, question, whole, room, usage)
            heard_s = len(whole) / SAMPLE_RATE
            answers.append(
                tasks.caption_answer(text, song.wanted, is_whole=is_whole, excerpts=len(heard), heard_s=heard_s)
            )
        if song.wanted & tasks.TRANSCRIBER_GIVES:
            texts, cut_off = [], 0
            for window in windows(signal, LONGEST_S):
                room = tasks.lyrics_tokens(len(window) / SAMPLE_RATE)
                text, is_whole = self._ask(self._lyrics_model, tasks.TRANSCRIBE, window, room, usage)
                texts.append(text)
                cut_off += not is_whole
            answers.append(tasks.lyrics_answer(texts, song.wanted, cut_off=cut_off))
        return Answer(
            {name: guess for answer in answers for name, guess in answer.values.items()},
            notes=tuple(dict.fromkeys(note for answer in answers for note in answer.notes)),
            usage=usage,
        )

    def _ask(
        self, model: str, task: str, signal: np.ndarray, max_tokens: int, usage: dict[str, float]
    ) -> tuple[str, bool]:
        """What the model says about a signal [N], and whether it came to its end within `max_tokens`."""
        sound = base64.b64encode(encoded(signal[None], SAMPLE_RATE, "wav")).decode("ascii")
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
        return choice.message.content or "", choice.finish_reason != "length"

    def _complete(self, model: str, task: str, sound: str, form: str, max_tokens: int) -> _Completion:
        import openai

        content: dict[str, Any] = {"data": sound, "format": "wav"}
        if form == "audio_url":
            content = {"url": f"data:audio/wav;base64,{sound}"}
        messages: list[Any] = [
            {"role": "user", "content": [{"type": "text", "text": task}, {"type": form, form: content}]}
        ]
        if _QWEN.search(model):
            messages.insert(0, {"role": "system", "content": tasks.SYSTEM})
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
