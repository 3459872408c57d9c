"""The agent's side of its host's ferry-tunnel: sessions are opened and closed on the tunnel's control socket."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from google.protobuf.duration_pb2 import Duration

from common.errors import Unreachable
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.tunnel.v1 import tunnel_control_service_pb2 as pb
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
_NS: Final = 1_000_000_000


class TunnelClient:
    """The tunnel of this host. Entering never fails: the tunnel may be started later."""

    def __init__(self, control_path: Path) -> None:
        self._path = control_path

    async def __aenter__(self) -> Self:
        """Open the channel; connecting happens with the first call."""
        self._channel = open_channel(f"unix:{self._path}", None)
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
        """End every connection of a session at once; an unknown one is fine."""
        with self._calls():
            await self._stub.CloseSession(pb.CloseSessionRequest(session_id=session_id), timeout=CLOSE_TIMEOUT_S)

    async def list_sessions(self) -> list[pb.Session]:
        """List the open sessions with their counters."""
        with self._calls():
            return list((await self._stub.ListSessions(pb.ListSessionsRequest(), timeout=OPEN_TIMEOUT_S)).sessions)

    @contextmanager
    def _calls(self) -> Iterator[None]:
        try:
            with calls_to("this host's tunnel"):
                yield
        except Unreachable as error:
            if error.reason != "PEER_UNREACHABLE":
                raise
            raise Unreachable(
                f"this host's tunnel does not answer on {self._path}; start it: ferry-tunnel --control {self._path}",
                reason="TUNNEL_NOT_RUNNING",
                path=self._path,
            ) from error
