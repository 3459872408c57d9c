"""The source's end: a UNIX socket that QEMU connects to, one stream to the other tunnel for each connection."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent.tunnel.frames import First, decode, encode_open
from agent.tunnel.link import Link, QemuGone, StreamBroken, check_socket_path, listen
from agent.tunnel.pump import FRAME_LIMIT_BYTES, discard, hand_over, run_both, run_unless_closed, send_on
from agent.tunnel.session import Session, check_channel_count, check_session_id
from agent.tunnel.streams import Call, EntranceStream
from common.errors import FerryError, Unreachable
from common.identity import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from common.tasks import OwnedTasks
from ferry.tunnel.v1 import tunnel_service_pb2 as pb

SERVICE: Final = "ferry.tunnel.v1.TunnelService"
CHECK_TIMEOUT_S: Final = 5.0
# Longer than the other tunnel waits for the connection before this one.
OPENED_TIMEOUT_S: Final = 15.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EntranceOrder:
    """What OpenEntrance asks for; `peer_address` is the other tunnel's `host:port`."""

    session_id: str
    token: str = field(repr=False)
    socket_path: Path
    peer_address: str
    channel_count: int

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        check_session_id(self.session_id)
        check_channel_count(self.channel_count)
        check_socket_path(self.socket_path)


class Entrance(Session):
    """One session at the source.

    Args:
        order: what to connect.
        identity: this host's certificate; None for plain text on loopback.
        tasks: runs what the session does in the background.
        frame_bytes: most bytes of a data frame that it sends.
        options: gRPC channel arguments.
    """

    def __init__(
        self,
        order: EntranceOrder,
        identity: Identity | None,
        tasks: OwnedTasks,
        *,
        frame_bytes: int,
        options: tuple[tuple[str, int], ...],
    ) -> None:
        super().__init__(order.session_id, order.channel_count)
        self._order = order
        self._tasks = tasks
        self._frame_bytes = frame_bytes
        self._peer = f"tunnel at {order.peer_address}"
        self._channel = open_channel(order.peer_address, identity, options=options)
        self._listener: socket.socket | None = None
        tasks.start(self._close_channel_at_the_end())

    async def check(self) -> float:
        """Prove path and token; return the time of one call there and back, in seconds.

        Raises:
            Unreachable: the other tunnel does not answer.
            WrongState: the token is wrong, expired or used up.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/CheckSession",
            request_serializer=pb.CheckSessionRequest.SerializeToString,
            response_deserializer=pb.CheckSessionResponse.FromString,
        )
        request = pb.CheckSessionRequest(token=self._order.token)
        with calls_to(self._peer):
            response = await call(request, timeout=CHECK_TIMEOUT_S)  # connects first
            began_s = time.perf_counter()
            await call(request, timeout=CHECK_TIMEOUT_S)
            round_trip_s = time.perf_counter() - began_s
        self._frame_bytes = min(self._frame_bytes, response.frame_limit_bytes or FRAME_LIMIT_BYTES)
        return round_trip_s

    def listen(self) -> None:
        """Bind the UNIX socket; QEMU may connect from now on.

        Raises:
            Unreachable: it cannot be bound.
        """
        self._listener = listen(self._order.socket_path, self.channel_count)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def cut(self) -> None:
        """End every connection, and listen no more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._order.socket_path.unlink(missing_ok=True)
        super().cut()

    async def _close_channel_at_the_end(self) -> None:
        try:
            await self.closed.wait()
        finally:
            await self._channel.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: it would be tried again at once, for ever
            self.note(Unreachable(f"connection {self.connection_count} cannot be accepted: {error.strerror}"), None)
            self.cut()
            return
        if self.connection_count == self.channel_count:
            connection.close()
            self.note(Unreachable(f"one connection more than the {self.channel_count} of the session was refused"), None)
            return
        ordinal, self.connection_count = self.connection_count, self.connection_count + 1
        self._tasks.start(self._carry(Link(connection, self.counters), ordinal))

    async def _carry(self, link: Link, ordinal: int) -> None:
        with self.holding(link):
            try:
                await run_unless_closed(self._relay(link, ordinal), self.closed)
            except FerryError as error:
                self.note(error, ordinal)
            except Exception:  # noqa: BLE001 - the driver of a connection: a mistake here must not end the other sessions
                self.error = "a mistake of Ferry's own; the log of the source's tunnel has more"
                _log.exception("bug", session=self.session_id, ordinal=ordinal)

    async def _relay(self, link: Link, ordinal: int) -> None:
        async with self._open_stream(ordinal) as stream:
            await run_both(send_on(link, stream, self._frame_bytes), self._hand_back(stream, link))

    async def _hand_back(self, stream: EntranceStream, link: Link) -> None:
        try:
            await hand_over(stream, link)
        except QemuGone:  # what it wrote before it went must still arrive
            await discard(stream)

    @asynccontextmanager
    async def _open_stream(self, ordinal: int) -> AsyncIterator[EntranceStream]:
        call: Call = self._channel.stream_stream(f"/{SERVICE}/Relay")()
        try:
            with calls_to(self._peer):
                async with asyncio.timeout(OPENED_TIMEOUT_S):
                    await call.write(encode_open(self._order.token, ordinal))
                    first = await call.read()
            if not isinstance(first, bytes) or not isinstance(decode(first), First):
                raise StreamBroken(f"{self._peer} did not open connection {ordinal}")
            yield EntranceStream(call, self._peer)
        except TimeoutError as error:
            raise Unreachable(f"{self._peer} did not open connection {ordinal} in {OPENED_TIMEOUT_S:g} s") from error
        finally:
            call.cancel()
