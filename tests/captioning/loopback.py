"""A server on this machine that speaks the protocols of the services, as good and as bad as a test asks."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def form(self) -> dict[str, list[bytes]]:
        """The parts of a multipart body by name; the file's own headers stand under "file headers"."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        parts: dict[str, list[bytes]] = {}
        for part in email.message_from_bytes(head + self.body, policy=email.policy.HTTP).iter_parts():
            name = part.get_param("name", header="content-disposition")
            parts.setdefault(name, []).append(part.get_payload(decode=True))
            if part.get_filename():
                parts["file headers"] = [f"{part.get_filename()} {part.get_content_type()}".encode()]
        return parts


@dataclass
class Reply:
    """An answer. `body` goes out as JSON unless it is bytes; the rest is what can go wrong on the way."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """End the connection in the middle of the body."""
    hang: bool = False
    """Never answer."""


Script = Callable[[Request], Reply]


class Loopback:
    """The running server: its address, and every request it got."""

    def __init__(self, script: Script) -> None:
        self.script, self.requests, self.over = script, [], threading.Event()
        self.url = ""
        self.refuses: Callable[[Request], bool] = lambda _: False
        """Whose connections end after the first bytes of the request."""

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]


@contextmanager
def serving(script: Script) -> Iterator[Loopback]:
    """Answers every request as `script` says."""
    loopback = Loopback(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            chunked = "chunked" in self.headers.get("transfer-encoding", "")
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, b"")
            loopback.requests.append(request)
            if loopback.refuses(request):
                self.rfile.read(1000)
                # a reset instead of a polite end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            request.body = self.read_chunks() if chunked else self.rfile.read(length)
            reply = loopback.script(request)
            if reply.hang:
                loopback.over.wait(20)
                self.close_connection = True
                return
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if reply.cut:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def read_chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # connections are ended on purpose
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield loopback
    finally:
        loopback.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
