"""What a half of a migration needs of others, as it sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.migration.order import Endpoint


@dataclass(frozen=True, slots=True)
class PeerReport:
    """What the destination's agent says of its half.

    Attributes:
        is_undone: the guest never ran there and never will.
        error: why it failed; empty while it has not.
        is_lost: the guest was taken over there, and its QEMU has ended.
        is_kept: where it is lost, whether the VM was stored there.
    """

    is_undone: bool
    is_final: bool
    error: str
    reason: str
    is_lost: bool = False
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class PathProof:
    """How the way to the destination is proved before QEMU uses it again.

    Attributes:
        uri: direct: where the destination's agent echoes, `tcp:host:port`, until QEMU listens there; empty for a tunnel.
        is_fragile: the destination's QEMU dies when this connection is lost while it recovers.
    """

    uri: str
    is_fragile: bool


class Destination(Protocol):
    """The destination's agent, on a connection that is kept open."""

    async def report_channels(self, migration_id: str, local_ports: tuple[int, ...], *, is_complete: bool) -> None:
        """Tell which connections are ours; with no ports at all, that we are about to connect."""

    async def ping(self, migration_id: str, source_address: str, *, timeout_s: float) -> None:
        """Return when the destination's agent answers, which says that it could run the guest; it learns where the source's is.

        Raises:
            Unreachable: nobody is there.
            Expired: no answer in time.
            FerryError: it knows nothing of this migration.
        """

    async def resume(self, migration_id: str, token: bytes, *, keep_paused: bool) -> float:
        """Give the guest away; return for how many seconds it has run there.

        Raises:
            GuestNeverRan: the destination proves that it never ran there and that its QEMU is gone.
            GuestLost: it was taken over there, and its QEMU has ended.
            Unreachable, Expired: it may have happened; ask again.
        """

    async def abandon(self, migration_id: str, token: bytes) -> None:
        """Let the destination's half be undone, since the guest stays here.

        Raises:
            WrongState: the guest may have run there.
            Unreachable, Expired: it may have happened; ask again.
        """

    async def prove_path(self, migration_id: str) -> PathProof:
        """Ask how to prove the way for a connection of post-copy that is to be made anew.

        Raises:
            FerryError: the destination's guest does not wait for one.
        """

    async def reopen(self, migration_id: str) -> Endpoint:
        """Let the destination's QEMU listen anew for the rest of the guest's memory.

        Raises:
            FerryError: it cannot.
        """

    def watch(self, migration_id: str) -> AsyncIterator[PeerReport]:
        """Follow the destination's half until it is final or the connection breaks."""


class Peers(Protocol):
    """Ways to the agents of other hosts."""

    def connect(self, address: str) -> AbstractAsyncContextManager[Destination]:
        """Open a connection to the agent at `host:port`."""


class Tunnel(Protocol):
    """This host's ferry-tunnel."""

    async def open_exit(
        self, session_id: str, token_sha256: bytes, socket_path: Path, channel_count: int, lifetime_s: float
    ) -> None:
        """Let streams with this token reach a UNIX socket of QEMU."""

    async def open_entrance(self, session_id: str, token: str, socket_path: Path, peer_address: str, channel_count: int) -> float:
        """Listen on a UNIX socket for QEMU, with the other tunnel checked; return the round trip in seconds."""

    async def close_session(self, session_id: str) -> None:
        """End every connection of a session at once; an unknown one is fine."""
