"""The agent's side of its host's ferry-tunnel: sessions are opened and closed on the tunnel's control socket.

Protobuf stops here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from google.protobuf.duration_pb2 import Duration

from common.errors import Unreachable
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.tunnel.v1 import tunnel_control_service_pb2 as pb
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc

# Longer than a tunnel waits for the other one.
OPEN_TIMEOUT_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 2.0
RECONNECT_MS: Final = 100
_PEER: Final = "this host's tunnel"
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A session of this host's tunnel, as it was a moment ago.

    Attributes:
        session_id: the migration's id.
        is_entrance: this is the source's end.
        connection_count: connections made so far.
        open_connection_count: connections open now.
        forward_bytes: carried from the source to the destination.
        backward_bytes: carried back.
        error: why the last connection broke; empty while none has.
    """

    session_id: str
    is_entrance: bool
    connection_count: int
    open_connection_count: int
    forward_bytes: int
    backward_bytes: int
    error: str


class TunnelClient:
    """The tunnel of this host. Entering never fails: the tunnel may be started later."""

    def __init__(self, control_path: Path) -> None:
        self._path = control_path

    async def __aenter__(self) -> Self:
        """Open the channel; connecting happens with the first call."""
        # On this host connecting costs nothing, and a tunnel that was started again shall be found at once.
        self._channel = open_channel(f"unix:{self._path}", None, options=(("grpc.max_reconnect_backoff_ms", RECONNECT_MS),))
        self._stub = rpc.TunnelControlServiceStub(self._channel)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the channel; sessions stay open."""
        await self._channel.close()

    async def open_exit(
        self, session_id: str, token_sha256: bytes, socket_path: Path, channel_count: int, lifetime_s: float
    ) -> None:
        """Let streams with this token reach a UNIX socket of QEMU.

        Raises:
            Unreachable: the tunnel is not running.
        """
        lifetime = Duration()
        lifetime.FromNanoseconds(round(lifetime_s * _NS))
        request = pb.OpenExitRequest(
            session_id=session_id,
            token_sha256=token_sha256,
            socket_path=str(socket_path),
            channel_count=channel_count,
            lifetime=lifetime,
        )
        with self._calls():
            await self._stub.OpenExit(request, timeout=OPEN_TIMEOUT_S)

    async def open_entrance(self, session_id: str, token: str, socket_path: Path, peer_address: str, channel_count: int) -> float:
        """Listen on a UNIX socket for QEMU, with the other tunnel and the token checked; return the round trip in seconds.

        Raises:
            Unreachable: this host's tunnel is not running, or the other cannot be reached.
            WrongState: the token is wrong, expired or used up.
        """
        request = pb.OpenEntranceRequest(
            session_id=session_id,
            token=token,
            socket_path=str(socket_path),
            peer_address=peer_address,
            channel_count=channel_count,
        )
        with self._calls():
            response = await self._stub.OpenEntrance(request, timeout=OPEN_TIMEOUT_S)
        return response.round_trip.ToNanoseconds() / _NS

    async def close_session(self, session_id: str) -> None:
        """End every connection of a session at once; an unknown one is fine.

        Raises:
            Unreachable: the tunnel is not running, so it has no connections.
            Expired: it did not answer in time.
        """
        with self._calls():
            await self._stub.CloseSession(pb.CloseSessionRequest(session_id=session_id), timeout=CLOSE_TIMEOUT_S)

    async def list_sessions(self) -> tuple[SessionReport, ...]:
        """List the open sessions with their counters.

        Raises:
            Unreachable: the tunnel is not running.
        """
        with self._calls():
            response = await self._stub.ListSessions(pb.ListSessionsRequest(), timeout=CLOSE_TIMEOUT_S)
        return tuple(
            SessionReport(
                one.session_id,
                one.side == pb.Session.SIDE_ENTRANCE,
                one.connection_count,
                one.open_connection_count,
                one.forward_bytes,
                one.backward_bytes,
                one.error,
            )
            for one in response.sessions
        )

    @contextmanager
    def _calls(self) -> Iterator[None]:
        try:
            with calls_to(_PEER):
                yield
        except Unreachable as error:
            if error.facts.get("peer") != _PEER:  # the other host's tunnel is meant, and the text says so
                raise
            raise Unreachable(
                f"{_PEER} does not answer on {self._path}; start it: ferry-tunnel --control {self._path}",
                reason="TUNNEL_NOT_RUNNING",
                path=self._path,
            ) from error
