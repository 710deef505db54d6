"""All labels by Google Gemini: caption, genre, lyrics and metadata as structured output of one call.

Sent is the sound alone, mono at 32 kHz: no name, no tags. What is too large for one request is uploaded under a
random name and deleted again, whatever happens in between.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from acestep.captioning.contract import FIELDS, Answer, BackendFacts, Guess, Hearing, SongToLabel
from acestep.captioning.gemini_task import answer_schema, task_for
from acestep.captioning.parsing import parse_json
from acestep.captioning.registry import model_name
from acestep.captioning.services import (
    AnswerT,
    Failure,
    Service,
    connections,
    encoded,
    service_of,
    usage_of,
)
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    from google import genai
    from google.genai import types

LARGEST_REQUEST = 20_000_000
"""Bytes of a whole request; sound grows by a third in it."""

TOKENS_A_SECOND = 12
"""Room for lyrics: twice what fast rap takes."""

_THINKING_TOKENS = 8192  # thoughts count as output
_POLL_S = 0.5
_MIME = "audio/flac"

HEARS = Hearing(32_000, 1)

FACTS = BackendFacts(
    name="gemini",
    title="Google Gemini",
    origin="service",
    gives=frozenset(FIELDS),
    hears=HEARS,
    model="gemini-3.8-flash",
    key_variable="GEMINI_API_KEY",
    network=True,
    parallel=True,
    packages=("google.genai",),
)


class Gemini:
    """Google's Gemini through its developer API."""

    facts = FACTS

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenGemini]:
        """The client. Raises UserError when the key is missing."""
        service = service_of(FACTS, settings, keys, job)
        from google import genai
        from google.genai import types

        with connections(settings) as http:
            options = types.HttpOptions(
                base_url=service.base_url or None, timeout=round(settings.timeout_s * 1000), httpx_client=http
            )
            # vertexai=False: else a variable of the environment chooses another service; no retries is the default
            client = genai.Client(vertexai=False, api_key=service.key.get_secret_value(), http_options=options)
            yield OpenGemini(client, service, settings, job)


class OpenGemini:
    """A client that is ready to listen."""

    def __init__(self, client: genai.Client, service: Service, settings: CaptionSettings, job: Job) -> None:
        self._client, self._service, self._settings, self._job = client, service, settings, job
        self._model = model_name(FACTS, settings)

    def label(self, song: SongToLabel) -> Answer:
        """All wanted fields of a song from one call."""
        assert song.samples is not None, "the batch decodes songs for this backend"
        notes: list[str] = []
        with self._sent(encoded(song.samples, HEARS.sample_rate, "flac"), notes) as sound:
            contents: list[Any] = [sound, task_for(song.language)]
            response = self._ask(
                lambda: self._client.models.generate_content(
                    model=self._model, contents=contents, config=self._config(song)
                )
            )
            text = self._text(response)
        parsed = parse_json(text)
        if not parsed.values and _reason(response) == "MAX_TOKENS":
            raise UserError(
                "Gemini's answer was cut off before it was whole.", fix="Raise max_tokens, or ask for fewer fields."
            )
        return Answer(
            {name: Guess(value) for name, value in parsed.values.items() if name in song.wanted},
            notes=(*notes, *parsed.notes),
            usage=self._usage(response, song.duration_s),
        )

    @contextmanager
    def _sent(self, sound: bytes, notes: list[str]) -> Iterator[types.Part]:
        """The sound as a part of the request: in it, or uploaded for as long as it is needed."""
        from google.genai import types

        if len(base64.b64encode(sound)) + 10_000 < LARGEST_REQUEST:
            yield types.Part.from_bytes(data=sound, mime_type=_MIME)
            return
        name = f"files/acestep-{uuid.uuid4().hex[:24]}"  # our name: known even where the answer to the upload is lost
        try:
            yield types.Part.from_uri(file_uri=self._upload(name, sound), mime_type=_MIME)
        finally:
            if trouble := self._delete(name):
                warning = f"An upload to Gemini could not be deleted ({trouble}); Google deletes it within 48 hours."
                notes.append(warning)
                self._job.warn(warning)

    def _upload(self, name: str, sound: bytes) -> str:
        """The address of an upload that is ready."""
        import io

        from google.genai import types

        config = types.UploadFileConfig(name=name, mime_type=_MIME)
        file = self._ask(lambda: self._client.files.upload(file=io.BytesIO(sound), config=config))
        give_up = self._job.clock() + self._settings.timeout_s
        while file.state == types.FileState.PROCESSING and self._job.clock() < give_up:
            self._job.check_stop()
            self._job.wait(_POLL_S)
            file = self._ask(lambda: self._client.files.get(name=name))
        if file.state == types.FileState.FAILED:
            raise UserError("Gemini cannot use the sound of this song.")
        if file.state != types.FileState.ACTIVE or not file.uri:
            raise self._service.verdict(Failure(None, "the upload does not become ready"))
        return file.uri

    def _delete(self, name: str) -> str:
        """Delete an upload, if there is one; says what prevents it."""
        from google.genai import errors

        kinds = _error_kinds()
        try:
            self._client.files.delete(name=name)
        except errors.ClientError as error:
            # Google answers 403 for files that do not exist
            return "" if error.code in (403, 404) else f"status {error.code}"
        except kinds as error:
            return type(error).__name__
        return ""

    def _config(self, song: SongToLabel) -> types.GenerateContentConfig:
        from google.genai import types

        room = self._settings.max_tokens + _THINKING_TOKENS
        if "lyrics" in song.wanted:
            room += round(TOKENS_A_SECOND * song.duration_s)
        return types.GenerateContentConfig(
            temperature=self._settings.temperature,
            seed=self._settings.seed if self._settings.temperature else None,
            max_output_tokens=room,
            response_mime_type="application/json",
            response_json_schema=answer_schema(song.wanted),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )

    def _text(self, response: types.GenerateContentResponse) -> str:
        reason = _reason(response)
        if reason in ("STOP", "MAX_TOKENS", "") and response.candidates:
            return response.text or ""
        blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
        why = reason or (blocked.value if blocked else "")
        if not why:
            raise self._service.verdict(Failure(None, "it holds neither text nor a reason"))
        raise UserError(
            f"Gemini did not answer for this song: {why}.", fix="Take these fields from another backend, or by hand."
        )

    def _usage(self, response: types.GenerateContentResponse, duration_s: float) -> dict[str, float]:
        usage = usage_of(self._service, FACTS, self._model, duration_s)
        if told := response.usage_metadata:
            usage["input_tokens"] = told.prompt_token_count or 0
            usage["output_tokens"] = (told.candidates_token_count or 0) + (told.thoughts_token_count or 0)
        return usage

    def _ask(self, call: Callable[[], AnswerT]) -> AnswerT:
        return self._service.ask(_error_kinds(), _read, call)


def _reason(response: types.GenerateContentResponse) -> str:
    reason = response.candidates[0].finish_reason if response.candidates else None
    return reason.value if reason else ""


def _error_kinds() -> tuple[type[Exception], ...]:
    import httpx
    from google.genai import errors

    # ValueError and KeyError: what the SDK raises for answers that are no JSON and uploads that get no address
    return errors.APIError, httpx.HTTPError, ValueError, KeyError


def _read(error: Exception) -> Failure:
    from google.genai import errors

    if not isinstance(error, errors.APIError):
        cut_off = isinstance(error, ValueError | KeyError)
        return Failure(None, "it is cut off or damaged" if cut_off else f"{type(error).__name__} {error}")
    headers = getattr(error.response, "headers", None) or {}
    details = error.details.get("error", error.details) if isinstance(error.details, dict) else {}
    more = [item for item in details.get("details") or [] if isinstance(item, dict)]
    for item in more:
        delay = str(item.get("retryDelay", ""))
        if delay.endswith("s") and "retry-after" not in headers:
            headers = {**headers, "retry-after": delay[:-1]}
    # of ErrorInfo the reason, of QuotaFailure which quota: those of a day do not pass within a batch
    quotas = [str(violation.get("quotaId")) for item in more for violation in item.get("violations") or []]
    codes = " ".join([*(str(item.get("reason", "")) for item in more), *quotas])
    return Failure(error.code, str(error.message or ""), headers, codes)


def backend() -> Gemini:
    """The backend, for the registry."""
    return Gemini()
