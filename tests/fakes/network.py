"""Places in the network that behave badly."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"


@contextmanager
def black_hole(host: str = LOOPBACK) -> Iterator[tuple[str, int]]:
    """Listen without room for one more connection: the kernel drops every SYN, and connect() hangs in SYN_SENT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family, backlog=0) as listener,
        socket.socket(family) as first,
        socket.socket(family) as second,
    ):
        address = listener.getsockname()[:2]
        first.connect(address)
        second.setblocking(False)
        second.connect_ex(address)
        yield address


def closed_port(host: str = LOOPBACK) -> int:
    """Find a TCP port where nobody listens."""
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
