"""What both ends of a tunnel know of a session: its connections to QEMU, its counters, and how to cut them all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from agent.tunnel.link import Counters, Link
from common.errors import FerryError, InvalidRequest

# One main channel, 255 of multifd, one of post-copy.
MAX_CHANNEL_COUNT: Final = 257
_log = structlog.get_logger()


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

    def note(self, error: FerryError, ordinal: int | None) -> None:
        """Remember and log why a connection ended; that the session was closed is no news.

        Args:
            error: why.
            ordinal: which connection; None if it was none yet.
        """
        if error.reason == "SESSION_CLOSED":
            return
        self.error = error.text
        _log.info("connection broke", session=self.session_id, ordinal=ordinal, error=error.text, reason=error.reason)

    def cut(self) -> None:
        """End every connection; when this returns, QEMU's sockets are shut down, whatever the other tunnel does."""
        self.closed.set()
        for link in self._links:
            link.cut()


def check_session_id(session_id: str) -> None:
    """Refuse a session without a name.

    Raises:
        InvalidRequest: it is empty.
    """
    if not session_id:
        raise InvalidRequest("session_id is empty: the migration's id is wanted", reason="SESSION_ID_MISSING")


def check_channel_count(count: int) -> None:
    """Refuse more channels than a migration can have.

    Raises:
        InvalidRequest: the count is out of range.
    """
    if not 1 <= count <= MAX_CHANNEL_COUNT:
        raise InvalidRequest(f"channel_count {count}: 1 to {MAX_CHANNEL_COUNT} are possible", reason="CHANNEL_COUNT_INVALID")
