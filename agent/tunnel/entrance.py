"""The source's end: a UNIX socket that QEMU connects to, one stream to the other tunnel for each connection."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from agent.tunnel.frames import First, decode, encode_open
from agent.tunnel.pump import SOCKET_BUFFER_BYTES, Counters, StreamBroken, to_socket, to_stream
from common.errors import FerryError
from common.pki import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.tunnel.v1 import tunnel_service_pb2 as pb

SERVICE: Final = "ferry.tunnel.v1.TunnelService"
CHECK_TIMEOUT_S: Final = 5.0
BACKLOG: Final = 64
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Order:
    """What an entrance is to connect; `peer_address` is the other tunnel's `host:port`."""

    session_id: str
    token: str
    socket_path: Path
    peer_address: str


class Entrance:
    """One session at the source."""

    def __init__(self, order: Order, identity: Identity | None, *, frame_bytes: int, options: tuple[tuple[str, int], ...]) -> None:
        self.session_id = order.session_id
        self.counters = Counters()
        self.connection_count = 0
        self.open_count = 0
        self.error = ""
        self.closed = asyncio.Event()
        self._token = order.token
        self._path = order.socket_path
        self._peer = f"tunnel at {order.peer_address}"
        self._frame_bytes = frame_bytes
        self._channel = open_channel(order.peer_address, identity, options=options)
        self._listener: socket.socket | None = None
        self._carried: set[asyncio.Task[None]] = set()

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
        request = pb.CheckSessionRequest(token=self._token)
        with calls_to(self._peer):
            await call(request, timeout=CHECK_TIMEOUT_S)
            began_s = time.perf_counter()
            await call(request, timeout=CHECK_TIMEOUT_S)
            return time.perf_counter() - began_s

    def listen(self) -> None:
        """Bind the UNIX socket; QEMU may connect from now on."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.settimeout(0)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(BACKLOG)
        self._listener = listener

    async def run(self) -> None:
        """Carry connections until the session is closed."""
        try:
            async with asyncio.TaskGroup() as group:
                acceptor = group.create_task(self._accept(group))
                await self.closed.wait()
                acceptor.cancel()
                for connection in self._carried:
                    connection.cancel()
        finally:
            await self.dispose()

    async def dispose(self) -> None:
        """Close what is open."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._path.unlink(missing_ok=True)
        await self._channel.close()

    async def _accept(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while self._listener is not None:
            connection, _ = await loop.sock_accept(self._listener)
            connection.settimeout(0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            ordinal, self.connection_count = self.connection_count, self.connection_count + 1
            carrier = group.create_task(self._carry(connection, ordinal))
            self._carried.add(carrier)
            carrier.add_done_callback(self._carried.discard)

    async def _carry(self, connection: socket.socket, ordinal: int) -> None:
        self.open_count += 1
        call: grpc.aio.StreamStreamCall[bytes, bytes] = self._channel.stream_stream(f"/{SERVICE}/Relay")()
        try:
            with calls_to(self._peer):
                await call.write(encode_open(self._token, ordinal))
                first = await _next(call)
                if first is None or not isinstance(decode(first), First):
                    raise StreamBroken("the other tunnel did not open the connection")
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward(connection, call))
                    group.create_task(to_socket(lambda: _next(call), connection, self._count_backward))
        except* (FerryError, OSError, grpc.aio.AioRpcError) as errors:
            self.error = _first_text(errors)
            _log.info("connection broke", session=self.session_id, ordinal=ordinal, error=self.error)
        finally:
            call.cancel()
            connection.close()
            self.open_count -= 1

    async def _forward(self, connection: socket.socket, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        await to_stream(connection, call.write, self._count_forward, self._frame_bytes)
        await call.done_writing()

    def _count_forward(self, count: int) -> None:
        self.counters.forward_bytes += count

    def _count_backward(self, count: int) -> None:
        self.counters.backward_bytes += count


class _Closed(Exception):
    """The session was closed."""


async def _next(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes | None:
    message = await call.read()
    return message if isinstance(message, bytes) else None


def _first_text(errors: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, grpc.aio.AioRpcError):
        return error.details() or error.code().name
    return str(error) or type(error).__name__
