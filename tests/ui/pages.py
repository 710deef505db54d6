"""What tests of pages share."""

from __future__ import annotations

import socket
from random import SystemRandom


def free_port() -> int:
    """A port nobody listens on, below those that outgoing connections get: a server can come back to it."""
    while True:
        port = SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
