"""The destination's end: which tokens open which UNIX socket of QEMU, in which order."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from agent.tunnel.pump import SOCKET_BUFFER_BYTES, Counters
from common.clock import Clock
from common.errors import InvalidRequest, Unreachable, WrongState

MAX_LIFETIME_S: Final = 24 * 3600.0
MAX_CHANNEL_COUNT: Final = 257
CONNECT_TIMEOUT_S: Final = 5.0
ORDER_TIMEOUT_S: Final = 10.0
REMEMBERED_COUNT: Final = 1000


@dataclass(slots=True, eq=False)
class Exit:
    """One session at the destination."""

    session_id: str
    token_sha256: bytes
    socket_path: str
    channel_count: int
    expires_at_s: float
    counters: Counters = field(default_factory=Counters)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    used: set[int] = field(default_factory=set)
    connected_count: int = 0
    open_count: int = 0
    error: str = ""
    _turn: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def connect(self, ordinal: int) -> socket.socket:
        """Connect to QEMU once the connection before this one is made: QEMU 7.2 takes the first for the main channel.

        Raises:
            InvalidRequest: the ordinal is out of range or was used before.
            Unreachable: QEMU does not listen, or the connection before never came.
        """
        if not 0 <= ordinal < self.channel_count or ordinal in self.used:
            raise InvalidRequest(
                f"relay: connection {ordinal} of {self.channel_count} is out of range or was made before", reason="ORDINAL_INVALID"
            )
        self.used.add(ordinal)
        try:
            async with asyncio.timeout(ORDER_TIMEOUT_S), self._turn:
                await self._turn.wait_for(lambda: self.connected_count == ordinal)
        except TimeoutError as error:
            raise Unreachable(
                f"relay: connection {ordinal} waited for one before it that never came", reason="ORDER_BROKEN"
            ) from error
        connection = await self._dial()
        async with self._turn:
            self.connected_count += 1
            self._turn.notify_all()
        return connection

    async def _dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, self.socket_path)
        except (OSError, TimeoutError) as error:
            connection.close()
            raise Unreachable(f"relay: QEMU does not listen on {self.socket_path}: {error}", reason="QEMU_NOT_LISTENING") from error
        except BaseException:
            connection.close()
            raise
        return connection


class Exits:
    """Every session at the destination, found by its token alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_id: dict[str, Exit] = {}
        self._closed: OrderedDict[bytes, None] = OrderedDict()

    def open(self, session_id: str, token_sha256: bytes, socket_path: str, channel_count: int, lifetime_s: float) -> None:
        """Let streams with this token in; the same session again replaces it.

        Raises:
            InvalidRequest: a value is out of range.
        """
        if len(token_sha256) != hashlib.sha256().digest_size:
            raise InvalidRequest(f"token_sha256 has {len(token_sha256)} bytes, 32 are wanted", reason="DIGEST_INVALID")
        if not 1 <= channel_count <= MAX_CHANNEL_COUNT:
            raise InvalidRequest(
                f"channel_count {channel_count}: 1 to {MAX_CHANNEL_COUNT} are possible", reason="CHANNEL_COUNT_INVALID"
            )
        if not 0 < lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequest(f"lifetime {lifetime_s:g} s: more than 0 and at most 24 h is possible", reason="LIFETIME_INVALID")
        self.close(session_id)
        expires_at_s = self._clock.monotonic_s() + lifetime_s
        self._by_id[session_id] = Exit(session_id, token_sha256, socket_path, channel_count, expires_at_s)

    def admit(self, token: str) -> Exit:
        """Return the session of a token.

        Raises:
            WrongState: the token is wrong, expired, or of a session that was closed.
        """
        digest = hashlib.sha256(token.encode()).digest()
        found = next((one for one in self._by_id.values() if hmac.compare_digest(one.token_sha256, digest)), None)
        if found is None:
            if digest in self._closed:
                raise WrongState("tunnel token: its session was closed; each migration needs a new one", reason="TOKEN_REUSED")
            raise WrongState("tunnel token: no session of this tunnel has it", reason="TOKEN_WRONG")
        if self._clock.monotonic_s() > found.expires_at_s:
            raise WrongState("tunnel token: it has expired", reason="TOKEN_EXPIRED")
        return found

    def close(self, session_id: str) -> None:
        """End a session and its connections; an unknown one is fine."""
        found = self._by_id.pop(session_id, None)
        if found is not None:
            found.closed.set()
            self._closed[found.token_sha256] = None
            if len(self._closed) > REMEMBERED_COUNT:
                self._closed.popitem(last=False)

    def all(self) -> list[Exit]:
        """Return the open sessions."""
        return list(self._by_id.values())
