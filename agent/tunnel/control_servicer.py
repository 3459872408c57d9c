"""The control plane for this host's agent: opens, lists and closes sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from agent.tunnel.entrance import Entrance, EntranceOrder
from agent.tunnel.exits import ExitOrder, Exits
from agent.tunnel.session import Session
from agent.tunnel.streams import Context
from common.identity import Identity
from common.tasks import OwnedTasks
from ferry.tunnel.v1 import tunnel_control_service_pb2 as pb
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc

SERVICE: Final = "ferry.tunnel.v1.TunnelControlService"
_NS: Final = 1_000_000_000
_log = structlog.get_logger()


class ControlServicer(rpc.TunnelControlServiceServicer):
    """Opens and closes sessions for this host's agent.

    Args:
        exits: shared with the data plane.
        identity: this host's certificate; None for plain text on loopback.
        tasks: runs the entrances.
        frame_bytes: most bytes of a data frame that an entrance sends.
        options: gRPC channel arguments of an entrance.
    """

    def __init__(
        self,
        exits: Exits,
        identity: Identity | None,
        tasks: OwnedTasks,
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
        order = ExitOrder(
            request.session_id,
            request.token_sha256,
            Path(request.socket_path),
            request.channel_count,
            request.lifetime.ToNanoseconds() / _NS,
        )
        self._exits.open(order)
        _log.info("exit opened", session=order.session_id, channel_count=order.channel_count)
        return pb.OpenExitResponse()

    async def OpenEntrance(self, request: pb.OpenEntranceRequest, context: Context) -> pb.OpenEntranceResponse:
        """Source: check the way, then listen for QEMU."""
        order = EntranceOrder(
            request.session_id, request.token, Path(request.socket_path), request.peer_address, request.channel_count
        )
        self._close_entrance(order.session_id)
        entrance = Entrance(order, self._identity, self._tasks, frame_bytes=self._frame_bytes, options=self._options)
        try:
            round_trip_s = await entrance.check()
            self._close_entrance(order.session_id)  # one that was asked for meanwhile
            entrance.listen()
        except BaseException:
            entrance.cut()
            raise
        self._entrances[order.session_id] = entrance
        _log.info("entrance opened", session=order.session_id, peer=order.peer_address, round_trip_ms=round_trip_s * 1000)
        response = pb.OpenEntranceResponse()
        response.round_trip.FromNanoseconds(round(round_trip_s * _NS))
        return response

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        """End a session; when this returns, QEMU's sockets are shut down."""
        self._exits.close(request.session_id)
        self._close_entrance(request.session_id)
        _log.info("session closed", session=request.session_id)
        return pb.CloseSessionResponse()

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """List the sessions."""
        entrances = [_report(one, pb.Session.SIDE_ENTRANCE) for one in self._entrances.values()]
        exits = [_report(one, pb.Session.SIDE_EXIT) for one in self._exits.all()]
        return pb.ListSessionsResponse(sessions=[*entrances, *exits])

    def close_all(self) -> None:
        """End every session."""
        for one in self._exits.all():
            self._exits.close(one.session_id)
        for session_id in list(self._entrances):
            self._close_entrance(session_id)

    def _close_entrance(self, session_id: str) -> None:
        entrance = self._entrances.pop(session_id, None)
        if entrance is not None:
            entrance.cut()


def _report(session: Session, side: pb.Session.Side.ValueType) -> pb.Session:
    is_entrance = side == pb.Session.SIDE_ENTRANCE
    counters = session.counters
    return pb.Session(
        session_id=session.session_id,
        side=side,
        connection_count=session.connection_count,
        open_connection_count=session.open_count,
        forward_bytes=counters.read_bytes if is_entrance else counters.written_bytes,
        backward_bytes=counters.written_bytes if is_entrance else counters.read_bytes,
        error=session.error,
    )
