"""The destination's end: which tokens open which UNIX socket of QEMU, and in which order its connections are made."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.tunnel.link import Link, check_socket_path, dial
from agent.tunnel.session import Session, check_channel_count, check_session_id
from common.clock import Clock
from common.errors import InvalidRequest, Unreachable, WrongState

MAX_LIFETIME_S: Final = 24 * 3600.0
ORDER_TIMEOUT_S: Final = 10.0
# A token that is over is told from a wrong one for this long.
REMEMBERED_FOR_S: Final = 3600.0
REMEMBERED_COUNT: Final = 1000


@dataclass(frozen=True, slots=True)
class ExitOrder:
    """What OpenExit asks for; `lifetime_s` is how long the token opens streams."""

    session_id: str
    token_sha256: bytes
    socket_path: Path
    channel_count: int
    lifetime_s: float

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        check_session_id(self.session_id)
        if len(self.token_sha256) != hashlib.sha256().digest_size:
            raise InvalidRequest(f"token_sha256 has {len(self.token_sha256)} bytes, 32 are wanted", reason="DIGEST_INVALID")
        check_channel_count(self.channel_count)
        if not 0 < self.lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequest(
                f"lifetime {self.lifetime_s:g} s: more than 0 and at most 24 h is possible", reason="LIFETIME_INVALID"
            )
        check_socket_path(self.socket_path)


class Exit(Session):
    """One session at the destination."""

    def __init__(self, order: ExitOrder, expires_at_s: float) -> None:
        super().__init__(order.session_id, order.channel_count)
        self.token_sha256 = order.token_sha256
        self.expires_at_s = expires_at_s
        self._path = order.socket_path
        self._claimed: set[int] = set()
        self._turns = [asyncio.Event() for _ in range(order.channel_count)]
        self._turns[0].set()
        self._is_broken = False

    @property
    def is_used_up(self) -> bool:
        """Say whether every connection was made already."""
        return self.connection_count == self.channel_count

    async def connect(self, ordinal: int) -> Link:
        """Connect to QEMU once the connection before this one is made: QEMU 7.2 takes the first for the main channel.

        Raises:
            InvalidRequest: the ordinal is out of range.
            WrongState: this connection was asked for before.
            Unreachable: QEMU does not listen, or the connection before was not made.
        """
        if not 0 <= ordinal < self.channel_count:
            raise InvalidRequest(
                f"connection {ordinal}: the session has 0 to {self.channel_count - 1}", reason="ORDINAL_INVALID", ordinal=ordinal
            )
        if ordinal in self._claimed:
            raise WrongState(f"connection {ordinal} was made before, and each is made once", reason="ORDINAL_USED", ordinal=ordinal)
        self._claimed.add(ordinal)
        try:
            await self._wait_turn(ordinal)
            link = await dial(self._path, self.counters)
        except BaseException:
            self._is_broken = True  # those after it would be taken for it
            self._wake_all()
            raise
        self.connection_count += 1
        if not self.is_used_up:
            self._turns[ordinal + 1].set()
        return link

    def cut(self) -> None:
        """End every connection, and those that wait for their turn."""
        super().cut()
        self._wake_all()

    async def _wait_turn(self, ordinal: int) -> None:
        try:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                await self._turns[ordinal].wait()
        except TimeoutError as error:
            raise Unreachable(
                f"connection {ordinal} waited {ORDER_TIMEOUT_S:g} s for the one before it, which never came", reason="ORDER_BROKEN"
            ) from error
        if self.closed.is_set():
            raise WrongState("the session was closed", reason="SESSION_CLOSED")
        if self._is_broken:
            raise Unreachable(f"connection {ordinal}: one before it could not be made", reason="ORDER_BROKEN")

    def _wake_all(self) -> None:
        for turn in self._turns:
            turn.set()


class Exits:
    """Every session at the destination, found by its token alone. Tokens themselves are never kept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_id: dict[str, Exit] = {}
        # SHA-256 of a token that is over: the reason, and until when it is remembered.
        self._over: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def open(self, order: ExitOrder) -> None:
        """Let streams with this token in; an open session of the same id is closed first."""
        self.close(order.session_id)
        self._over.pop(order.token_sha256, None)
        self._by_id[order.session_id] = Exit(order, self._clock.monotonic_s() + order.lifetime_s)

    def admit(self, token: str) -> Exit:
        """Return the session of a token.

        Raises:
            WrongState: the token is wrong, expired, or used up.
        """
        digest = hashlib.sha256(token.encode()).digest()
        self._expire()
        found = next((one for one in self._by_id.values() if hmac.compare_digest(one.token_sha256, digest)), None)
        if found is None:
            reason, _ = self._over.get(digest, ("TOKEN_WRONG", 0.0))
            raise _refusal(reason)
        if self._clock.monotonic_s() > found.expires_at_s:
            raise _refusal("TOKEN_EXPIRED")
        if found.is_used_up:
            raise _refusal("TOKEN_REUSED")
        return found

    def close(self, session_id: str) -> None:
        """End a session and its connections; an unknown one is fine."""
        found = self._by_id.pop(session_id, None)
        if found is not None:
            found.cut()
            self._remember(found.token_sha256, "TOKEN_REUSED")

    def all(self) -> list[Exit]:
        """Return the open sessions."""
        self._expire()
        return list(self._by_id.values())

    def _expire(self) -> None:
        """Forget sessions that nobody closed: expired, and without a connection."""
        now_s = self._clock.monotonic_s()
        for one in list(self._by_id.values()):
            if now_s > one.expires_at_s and not one.open_count:
                self.close(one.session_id)
                self._remember(one.token_sha256, "TOKEN_EXPIRED")
        while self._over and next(iter(self._over.values()))[1] < now_s:
            self._over.popitem(last=False)

    def _remember(self, token_sha256: bytes, reason: str) -> None:
        self._over.pop(token_sha256, None)
        self._over[token_sha256] = (reason, self._clock.monotonic_s() + REMEMBERED_FOR_S)
        if len(self._over) > REMEMBERED_COUNT:
            self._over.popitem(last=False)


def _refusal(reason: str) -> WrongState:
    match reason:
        case "TOKEN_EXPIRED":
            return WrongState("tunnel token: it has expired; each migration needs a new one", reason=reason)
        case "TOKEN_REUSED":
            return WrongState("tunnel token: it was used already; each migration needs a new one", reason=reason)
        case _:
            return WrongState("tunnel token: no session of this tunnel has it", reason="TOKEN_WRONG")
