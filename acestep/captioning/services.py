"""What the services share: keys, addresses, sound as they take it, and what their failures mean for a batch.

The vendors' own retries are switched off everywhere: the batch run alone decides when to come back.
"""

from __future__ import annotations

import email.utils
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, SecretStr, ValidationError

from acestep.captioning.contract import BackendFacts, BackendUnusable, TryAgain
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.dataset.text import one_line
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import httpx

AnswerT = TypeVar("AnswerT")
ModelT = TypeVar("ModelT", bound=BaseModel)

CONNECT_TIMEOUT_S = 15.0
OPEN_SERVER = "openai-compatible"
"""The backend whose server `base_url` names first of all."""

_LONGEST_MESSAGE = 300
_PASSING = frozenset({408, 409, 425, 429})
_SPENT = ("insufficient_quota", "quota_exceeded", "billing", "perday", "credit")
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Failure:
    """What an SDK said went wrong: the HTTP status (None: no answer came), its text, headers and reason codes."""

    status: int | None
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    codes: str = ""


@dataclass(frozen=True)
class Service:
    """Where a service is and the key to it. The key shows in no text made from this."""

    title: str
    key: SecretStr
    key_variable: str
    base_url: str = ""
    """A stand-in's address; empty for the vendor's own."""

    def verdict(self, failure: Failure) -> UserError:
        """TryAgain for trouble that may pass, BackendUnusable for what every song meets, UserError for one song."""
        said = self._said(failure.message)
        status, codes = failure.status, failure.codes.lower()
        if status is None or 200 <= status < 300:
            return TryAgain(f"{self.title} gave no whole answer{said}.")
        if status in (401, 402, 403, 429) and any(word in codes for word in _SPENT):
            return BackendUnusable(
                f"The quota of this key at {self.title} is used up.", fix="Add credit there, or come back later."
            )
        if status == 401 or "api_key_invalid" in codes:
            return BackendUnusable(
                f"{self.title} refuses the key ({status}).", fix=f"Check the key in {self.key_variable}."
            )
        if status in (402, 403):
            return BackendUnusable(
                f"{self.title} does not allow this ({status}){said}.", fix="Check the rights and plan of the key."
            )
        if status in _PASSING or status >= 500:
            return TryAgain(
                f"{self.title} cannot answer now ({status}){said}.", after_s=retry_after_s(failure.headers, time.time())
            )
        if status == 404 or status < 400:
            return BackendUnusable(
                f"{self.title} does not know this model or address ({status}){said}.",
                fix="Check the name of the model and base_url.",
            )
        return UserError(f"{self.title} does not take this song ({status}){said}.")

    def without_key(self, text: str) -> str:
        """`text` in one line, with neither the key nor the masked or cut forms of it that services quote."""
        key = self.key.get_secret_value()
        if key:
            text = text.replace(key, "[key]")
        if len(key) >= 8:
            text = re.sub(rf"{re.escape(key[:6])}\S*|\S*{re.escape(key[-4:])}(?![\w-])", "[key]", text)
        text = one_line(re.sub(r"(?i)\bbearer\s+\S+", "[key]", text))
        return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"

    def _said(self, message: str) -> str:
        text = self.without_key(message).rstrip(". ")
        return f": {text}" if text else ""

    def ask(
        self, kinds: tuple[type[Exception], ...], read: Callable[[Exception], Failure], call: Callable[[], AnswerT]
    ) -> AnswerT:
        """What an SDK's `call` gives; its exceptions (`kinds`, as `read` understands them) become a backend's."""
        try:
            return call()
        except kinds as error:
            failure = read(error)
        # raised out here, so that the SDK's exception, which holds the request with its key, is not kept as context
        raise self.verdict(failure)

    def fitting(self, model: type[ModelT], answer: object) -> ModelT:
        """An SDK's answer, which the SDKs do not check, in the form it must have. Raises TryAgain where it has not."""
        if isinstance(answer, BaseModel):
            answer = answer.model_dump(warnings=False)
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            wrong = ".".join(str(part) for part in error.errors()[0]["loc"]) or "all of it"
        raise TryAgain(f"{self.title} gave an answer of another form than agreed (wrong: {wrong}).")


def key_of(facts: BackendFacts, keys: Mapping[str, str]) -> str:
    """The key of a backend, from `keys` or the environment. Raises UserError where one is needed and missing."""
    key = (keys.get(facts.key_variable) or os.environ.get(facts.key_variable, "")).strip() if facts.key_variable else ""
    if not key and facts.key_variable and facts.key_needed:
        raise UserError(
            f"{facts.title} needs a key.",
            fix=f"Set the environment variable {facts.key_variable}, or type the key into the password field.",
        )
    return key


def service_of(facts: BackendFacts, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Service:
    """The service of a backend. Raises UserError for a missing key and for an address that is none."""
    key = key_of(facts, keys)
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError(f"The key in {facts.key_variable} holds characters that no key has.", fix="Copy it again.")
    base_url = _address(facts, settings)
    parts = urlsplit(base_url)
    if key and parts.scheme == "http" and parts.hostname not in _LOCAL_HOSTS:
        job.warn(f"The key goes to {parts.hostname} unencrypted; use https where others share the network.")
    return Service(facts.title, SecretStr(key), facts.key_variable, base_url)


def _address(facts: BackendFacts, settings: CaptionSettings) -> str:
    users = {settings.caption_by, settings.lyrics_by, settings.metadata_by}
    if OPEN_SERVER in users and facts.name != OPEN_SERVER:
        return ""  # base_url is that server's, and the keys of vendors are none of its business
    url = settings.base_url.strip().rstrip("/")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise UserError("base_url is no address.", fix="Write it as http://HOST:PORT/v1 or https://HOST/v1.")
    if parts.username or parts.password or parts.query:
        raise UserError("base_url holds more than an address.", fix=f"Put the key into {facts.key_variable}.")
    return url


def recipient(facts: BackendFacts, settings: CaptionSettings) -> str:
    """Who gets the sound of the songs from this backend; empty where it stays on this computer."""
    if not facts.network:
        return ""
    address = _address(facts, settings)
    host = urlsplit(address).hostname or ""
    return "" if host in _LOCAL_HOSTS else host or facts.title


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until a service wants to be asked again, from Retry-After in seconds or as a date (`now`: Unix time)."""
    known = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", known.get(name, "")):
            return float(known[name]) * unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(known["retry-after"]).timestamp() - now)
    except (KeyError, ValueError):
        return None


@contextmanager
def connections(settings: CaptionSettings) -> Iterator[httpx.Client]:
    """An HTTP client for an SDK. It follows no redirects: they would take along keys in headers of a vendor's own."""
    import httpx

    timeout = httpx.Timeout(settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s))
    with httpx.Client(timeout=timeout, follow_redirects=False) as client:
        yield client


def encoded(samples: np.ndarray, sample_rate: int, kind: Literal["flac", "wav"]) -> bytes:
    """Sound [channels, N] as a 16-bit file in memory: no tags, pictures or names go along. Too loud is turned down."""
    import soundfile

    peak = float(np.abs(samples).max(initial=0.0))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T / max(1.0, peak), sample_rate, format=kind.upper(), subtype="PCM_16")
    return buffer.getvalue()


def pieces(
    samples: np.ndarray, sample_rate: int, longest_s: float, overlap_s: float = 0.0
) -> list[tuple[float, np.ndarray]]:
    """Equal pieces of a song [channels, N], none longer than `longest_s`, and the second at which each begins."""
    total = samples.shape[1]
    longest, overlap = round(longest_s * sample_rate), round(overlap_s * sample_rate)
    count = max(1, -(-(total - overlap) // (longest - overlap)))
    length = -(-(total + (count - 1) * overlap) // count)
    starts = [number * (length - overlap) for number in range(count)]
    return [(start / sample_rate, samples[:, start : start + length]) for start in starts]


@dataclass(frozen=True)
class Price:
    """What a service asked for a minute of sound in US dollars, on a day, for one model."""

    model: str
    usd_per_minute: float
    as_of: str


PRICES: dict[str, Price] = {
    "openai-whisper": Price("whisper-1", 0.006, "2026-11"),
    "elevenlabs-scribe": Price("scribe_v2", 0.40 / 60, "2026-11"),
    # 32 tokens a second at 0.75 dollars a million, and an answer of 350 tokens a minute at 3.75; twice that from 2027
    "gemini": Price("gemini-3.8-flash", 0.0028, "2026-10"),
}
"""Estimates from the vendors' public price lists, for the smallest paid plan; the bill may differ."""


def usage_of(service: Service, facts: BackendFacts, model: str, duration_s: float) -> dict[str, float]:
    """What hearing so much sound took: its seconds, and at the vendor itself about how many US dollars."""
    usd = None if service.base_url else estimated_usd(facts.name, model, duration_s)
    return {"audio_s": duration_s} if usd is None else {"audio_s": duration_s, "estimated_usd": usd}


def estimated_usd(backend_name: str, model: str, duration_s: float) -> float | None:
    """About what labelling so much sound costs; None where no price is known."""
    price = PRICES.get(backend_name)
    return None if price is None or price.model != model else price.usd_per_minute * duration_s / 60
