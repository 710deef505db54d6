"""Lyrics and their language by ElevenLabs Scribe, with the time of every word.

Sent is the sound alone, mono at 16 kHz: no name, no tags.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from acestep.captioning.contract import Answer, BackendFacts, Guess, Hearing, SongToLabel
from acestep.captioning.lines import Word
from acestep.captioning.registry import model_name
from acestep.captioning.services import (
    Failure,
    Service,
    connections,
    encoded,
    service_of,
    usage_of,
)
from acestep.captioning.transcripts import language_hint, transcript_answer
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    from elevenlabs.client import ElevenLabs

OFFICIAL_URL = "https://api.elevenlabs.io"

HEARS = Hearing(16_000, 1)

FACTS = BackendFacts(
    name="elevenlabs-scribe",
    title="ElevenLabs Scribe",
    origin="service",
    gives=frozenset({"lyrics", "language"}),
    hears=HEARS,
    model="scribe_v2",
    key_variable="ELEVENLABS_API_KEY",
    network=True,
    parallel=True,
    packages=("elevenlabs",),
)


class _Token(BaseModel):
    text: str
    type: str
    start: float | None = None
    end: float | None = None
    logprob: float | None = None


class _Transcript(BaseModel):
    text: str
    words: list[_Token]
    language_code: str = ""
    language_probability: float | None = None


class ElevenLabsScribe:
    """ElevenLabs' transcription service."""

    facts = FACTS

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenScribe]:
        """The client. Raises UserError when the key is missing."""
        service = service_of(FACTS, settings, keys, job)
        from elevenlabs.client import ElevenLabs

        with connections(settings) as http:
            client = ElevenLabs(
                api_key=service.key.get_secret_value(),
                base_url=service.base_url or OFFICIAL_URL,
                timeout=None,  # that of `http`, else the SDK's own 240 s rule
                httpx_client=http,
            )
            yield OpenScribe(client, service, model_name(FACTS, settings))


class OpenScribe:
    """A client that is ready to transcribe."""

    def __init__(self, client: ElevenLabs, service: Service, model: str) -> None:
        self._client, self._service, self._model = client, service, model

    def label(self, song: SongToLabel) -> Answer:
        """Lyrics and language of a song."""
        assert song.samples is not None, "the batch decodes songs for this backend"
        transcript = self._transcribe(encoded(song.samples, HEARS.sample_rate, "flac"), song)
        sung = [token for token in transcript.words if token.type == "word"]
        logprobs = [token.logprob for token in sung if token.logprob is not None]
        return transcript_answer(
            song,
            [Word(token.text, token.start, token.end) for token in sung],
            "" if transcript.words else transcript.text,
            Guess(transcript.language_code, transcript.language_probability),
            confidence=math.exp(min(sum(logprobs) / len(logprobs), 0.0)) if logprobs else None,
            usage=usage_of(self._service, FACTS, self._model, song.duration_s),
        )

    def _transcribe(self, sound: bytes, song: SongToLabel) -> _Transcript:
        import httpx
        from elevenlabs.core.api_error import ApiError

        answer = self._service.ask(
            (ApiError, httpx.HTTPError, UnicodeDecodeError),
            _read,
            lambda: self._client.speech_to_text.convert(
                file=("song.flac", sound, "audio/flac"),
                model_id=self._model,
                timestamps_granularity="word",
                tag_audio_events=False,
                diarize=False,
                language_code=language_hint(song) or None,
                request_options={"max_retries": 0},
            ),
        )
        return self._service.fitting(_Transcript, answer)


def _read(error: Exception) -> Failure:
    from elevenlabs.core.api_error import ApiError

    if not isinstance(error, ApiError):
        return Failure(None, f"{type(error).__name__} {error}")
    if error.status_code is None or error.status_code < 300:
        return Failure(None, "its JSON is cut off or damaged")
    detail: Any = error.body.get("detail", error.body) if isinstance(error.body, dict) else error.body
    if not isinstance(detail, dict):
        return Failure(error.status_code, str(detail), error.headers or {})
    codes = f"{detail.get('status', '')} {detail.get('code', '')}"
    return Failure(error.status_code, str(detail.get("message", "")), error.headers or {}, codes)


def backend() -> ElevenLabsScribe:
    """The backend, for the registry."""
    return ElevenLabsScribe()
