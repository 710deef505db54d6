"""Refuses requests that come by way of another website: a page elsewhere must not drive the app of its visitor."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass
class SameSite:
    """Middleware in front of the whole server.

    Browsers send the origin of a page with what it posts, also where they then hide the answer from it; another
    origin than the server's own is refused. Without credentials (`local_only`) the server must also be called by a
    name of this computer, else a website whose name is made to point here could read everything (DNS rebinding).
    """

    app: ASGIApp
    local_only: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (reason := self._refusal(Headers(scope=scope))):
            await PlainTextResponse(reason, status_code=403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local_only and not is_loopback(_name(f"//{host}")):
            return "Without a password this app answers only under the names of this computer."
        if origin is None:
            return ""
        names = {_name(f"//{host}"), _name(f"//{headers.get('x-forwarded-host', host)}")}
        return "" if _name(origin) in names else "Requests from other websites are refused."


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
