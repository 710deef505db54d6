"""The client of OpenAI's SDK, for the service itself and for all servers that speak its protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from acestep.captioning.services import CONNECT_TIMEOUT_S, AnswerT, Failure, Service
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import openai

OFFICIAL_URL = "https://api.openai.com/v1"


@contextmanager
def openai_client(service: Service, settings: CaptionSettings) -> Iterator[openai.OpenAI]:
    """A client without retries of its own. What the environment says about OpenAI goes to OpenAI alone."""
    import httpx2
    import openai

    url = service.base_url or OFFICIAL_URL
    if not urlsplit(url).path:
        url += "/v1"
    with openai.OpenAI(
        api_key=service.key.get_secret_value() or "none",  # the SDK insists on one
        base_url=url,
        timeout=httpx2.Timeout(settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s)),
        max_retries=0,
        http_client=httpx2.Client(follow_redirects=False),
    ) as client:
        if service.base_url:
            client.organization = client.project = None
            client._custom_headers = {}  # no public way: those of OPENAI_CUSTOM_HEADERS, which may hold a key
        yield client


def ask_openai(service: Service, call: Callable[[], AnswerT]) -> AnswerT:
    """What the SDK's `call` gives. Raises the exceptions of a backend."""
    import httpx2
    import openai

    kinds = (openai.OpenAIError, httpx2.HTTPError, json.JSONDecodeError, UnicodeDecodeError)
    return service.ask(kinds, _read, call)


def _read(error: Exception) -> Failure:
    import openai

    if isinstance(error, openai.APIStatusError):
        body = error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or body.get("detail") or error.message
        codes = f"{body.get('code', '')} {body.get('type', '')}"
        return Failure(error.status_code, str(message), error.response.headers, codes)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return Failure(None, "its JSON is cut off or damaged")
    reason = error.__cause__ or error
    return Failure(None, f"{type(reason).__name__} {reason}")
