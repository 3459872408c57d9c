"""What both ends of a tunnel know of a session: its connections to QEMU, its counters, and how to cut them all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from agent.tunnel.link import Counters, Link


class Session:
    """One migration's share of a tunnel; an entrance and an exit are each one."""

    def __init__(self, session_id: str, channel_count: int) -> None:
        self.session_id = session_id
        self.channel_count = channel_count
        self.counters = Counters()
        self.connection_count = 0
        self.error = ""
        self.closed = asyncio.Event()
        self._links: set[Link] = set()

    @property
    def open_count(self) -> int:
        """Connections open now."""
        return len(self._links)

    @contextmanager
    def holding(self, link: Link) -> Iterator[None]:
        """Own a connection to QEMU: it is closed when the context is left, and cut when the session is."""
        if self.closed.is_set():
            link.cut()
        self._links.add(link)
        try:
            yield
        finally:
            self._links.discard(link)
            link.close()

    def cut(self) -> None:
        """End every connection; when this returns, QEMU's sockets are shut down, whatever the other tunnel does."""
        self.closed.set()
        for link in self._links:
            link.cut()
