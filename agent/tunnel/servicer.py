"""The tunnel's gRPC edge: the data plane for other tunnels, the control plane for this host's agent."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
import structlog

from agent.tunnel.entrance import SERVICE, Entrance, Order
from agent.tunnel.exits import Exit, Exits
from agent.tunnel.frames import OPENED, First, decode, decode_open
from agent.tunnel.pump import StreamBroken, to_socket, to_stream
from common.errors import FerryError, InvalidRequest
from common.pki import Identity
from ferry.tunnel.v1 import tunnel_control_service_pb2 as pb
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc
from ferry.tunnel.v1 import tunnel_service_pb2

OPEN_TIMEOUT_S: Final = 10.0
_NS: Final = 1_000_000_000
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


class DataServicer:
    """Carries connections from other tunnels to QEMU."""

    def __init__(self, exits: Exits, *, frame_bytes: int) -> None:
        self._exits = exits
        self._frame_bytes = frame_bytes

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on `server`; data frames stay raw bytes."""
        handlers = {
            "CheckSession": grpc.unary_unary_rpc_method_handler(
                self.check,
                request_deserializer=tunnel_service_pb2.CheckSessionRequest.FromString,
                response_serializer=tunnel_service_pb2.CheckSessionResponse.SerializeToString,
            ),
            "Relay": grpc.stream_stream_rpc_method_handler(self.relay),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def check(
        self, request: tunnel_service_pb2.CheckSessionRequest, context: Context
    ) -> tunnel_service_pb2.CheckSessionResponse:
        """Prove that path and token are good."""
        self._exits.admit(request.token)
        return tunnel_service_pb2.CheckSessionResponse(frame_limit_bytes=self._frame_bytes)

    async def relay(self, requests: object, context: Context) -> None:
        """Carry one connection."""
        session, ordinal = await self._read_open(context)
        connection = await session.connect(ordinal)
        session.open_count += 1
        try:
            await context.write(OPENED)
            await self._carry(session, connection, context)
        finally:
            connection.close()
            session.open_count -= 1

    async def _read_open(self, context: Context) -> tuple[Exit, int]:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            message = await _next(context)
        frame = None if message is None else decode(message)
        if not isinstance(frame, First):
            raise InvalidRequest("relay: the first frame is not an Open", reason="FRAME_INVALID")
        opened = decode_open(frame)
        return self._exits.admit(opened.token), opened.ordinal

    async def _carry(self, session: Exit, connection: socket.socket, context: Context) -> None:
        def count_forward(count: int) -> None:
            session.counters.forward_bytes += count

        def count_backward(count: int) -> None:
            session.counters.backward_bytes += count

        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(_raise_when_closed(session))
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(to_socket(lambda: _next(context), connection, count_forward))
                    directions.create_task(to_stream(connection, context.write, count_backward, self._frame_bytes))
                watcher.cancel()
        except* (FerryError, OSError) as errors:
            session.error = str(_first(errors))
            raise StreamBroken(f"relay: {session.error}") from _first(errors)


class ControlServicer(rpc.TunnelControlServiceServicer):
    """Opens and closes sessions for this host's agent."""

    def __init__(
        self,
        exits: Exits,
        identity: Identity | None,
        tasks: asyncio.TaskGroup,
        *,
        frame_bytes: int,
        options: tuple[tuple[str, int], ...],
    ) -> None:
        self._exits = exits
        self._identity = identity
        self._tasks = tasks
        self._frame_bytes = frame_bytes
        self._options = options
        self._entrances: dict[str, Entrance] = {}

    async def OpenExit(self, request: pb.OpenExitRequest, context: Context) -> pb.OpenExitResponse:
        """Destination: let streams with this token reach QEMU."""
        self._exits.open(
            request.session_id,
            request.token_sha256,
            request.socket_path,
            request.channel_count,
            request.lifetime.ToNanoseconds() / _NS,
        )
        _log.info("exit opened", session=request.session_id)
        return pb.OpenExitResponse()

    async def OpenEntrance(self, request: pb.OpenEntranceRequest, context: Context) -> pb.OpenEntranceResponse:
        """Source: check the way, then listen for QEMU."""
        self._close_entrance(request.session_id)
        order = Order(request.session_id, request.token, Path(request.socket_path), request.peer_address)
        entrance = Entrance(order, self._identity, frame_bytes=self._frame_bytes, options=self._options)
        try:
            round_trip_s = await entrance.check()
            entrance.listen()
        except BaseException:
            await entrance.dispose()
            raise
        self._entrances[request.session_id] = entrance
        self._tasks.create_task(entrance.run())
        _log.info("entrance opened", session=request.session_id, peer=request.peer_address, round_trip_ms=round_trip_s * 1000)
        response = pb.OpenEntranceResponse()
        response.round_trip.FromNanoseconds(int(round_trip_s * _NS))
        return response

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        """End a session at once."""
        self._exits.close(request.session_id)
        self._close_entrance(request.session_id)
        return pb.CloseSessionResponse()

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """List the sessions."""
        exits = [
            pb.Session(
                session_id=one.session_id,
                side=pb.Session.SIDE_EXIT,
                connection_count=one.connected_count,
                open_connection_count=one.open_count,
                forward_bytes=one.counters.forward_bytes,
                backward_bytes=one.counters.backward_bytes,
                error=one.error,
            )
            for one in self._exits.all()
        ]
        entrances = [
            pb.Session(
                session_id=one.session_id,
                side=pb.Session.SIDE_ENTRANCE,
                connection_count=one.connection_count,
                open_connection_count=one.open_count,
                forward_bytes=one.counters.forward_bytes,
                backward_bytes=one.counters.backward_bytes,
                error=one.error,
            )
            for one in self._entrances.values()
        ]
        return pb.ListSessionsResponse(sessions=[*entrances, *exits])

    def close_all(self) -> None:
        """End every session."""
        for session in self._exits.all():
            self._exits.close(session.session_id)
        for session_id in list(self._entrances):
            self._close_entrance(session_id)

    def _close_entrance(self, session_id: str) -> None:
        entrance = self._entrances.pop(session_id, None)
        if entrance is not None:
            entrance.closed.set()


async def _next(context: Context) -> bytes | None:
    message = await context.read()
    return message if isinstance(message, bytes) else None


async def _raise_when_closed(session: Exit) -> None:
    await session.closed.wait()
    raise StreamBroken("the session was closed")


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
