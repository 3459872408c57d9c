"""Where the servers of a fleet live: which address they serve on, and how they are started there."""

from __future__ import annotations

from typing import Protocol

LOOPBACK = "127.0.0.1"


class Places(Protocol):
    """Addresses and namespaces, by `host-a`, `host-b` or `coordinator`."""

    def address(self, place: str) -> str:
        """Give the IP address that servers of this place listen on."""

    def prefix(self, place: str) -> tuple[str, ...]:
        """Give what stands before the command line of a process that is started there."""


class OneMachine:
    """Everything on the loopback."""

    def address(self, _place: str) -> str:
        """Give the loopback's address."""
        return LOOPBACK

    def prefix(self, _place: str) -> tuple[str, ...]:
        """Put nothing before a command line."""
        return ()
