"""The process ferry-tunnel: its two servers, and what they share."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.tunnel.control_servicer import SERVICE as CONTROL_SERVICE
from agent.tunnel.control_servicer import ControlServicer
from agent.tunnel.entrance import SERVICE
from agent.tunnel.exits import Exits
from agent.tunnel.pump import DEFAULT_FRAME_BYTES, FRAME_LIMIT_BYTES
from agent.tunnel.relay_servicer import RelayServicer
from common.clock import SystemClock
from common.errors import InvalidRequest, WrongState
from common.identity import Identity, Role
from common.rpc.server import Allowed, Service, serve
from common.tasks import OwnedTasks
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc

MIN_FRAME_BYTES: Final = 4096
PROBE_TIMEOUT_S: Final = 1.0
# Chosen by measurement: docs/decisions/0003-tunnel-frames.md.
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Bytes of one connection between the tunnels that the destination's QEMU has not taken yet.
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    # A probe that is not answered keeps gRPC from noticing for 60 s that the peer is silent.
    ("grpc.http2.bdp_probe", 0),
    # How long bytes of a guest may go without an acknowledgement; gRPC gives it to TCP as TCP_USER_TIMEOUT, too. Just less than
    # the source's agent waits for a byte, so that a network that is away for a moment ends no move.
    ("grpc.keepalive_timeout_ms", 25_000),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a tunnel runs.

    Attributes:
        listen: `host:port` for other tunnels; port 0 takes a free one.
        control: UNIX socket for this host's agent.
        identity: certificate; None for plain text, on loopback only.
        frame_bytes: most bytes of a data frame that it sends.
        options: gRPC channel arguments, of both the server and the entrances' channels.
    """

    listen: str
    control: Path
    identity: Identity | None
    frame_bytes: int = DEFAULT_FRAME_BYTES
    options: tuple[tuple[str, int], ...] = CHANNEL_OPTIONS

    def __post_init__(self) -> None:
        """Refuse a frame that the other tunnel would not take, or that carries next to nothing."""
        if not MIN_FRAME_BYTES <= self.frame_bytes <= FRAME_LIMIT_BYTES:
            raise InvalidRequest(
                f"frame-size {self.frame_bytes}: {MIN_FRAME_BYTES} to {FRAME_LIMIT_BYTES} bytes are possible",
                reason="CONFIG_INVALID",
            )


@asynccontextmanager
async def tunnel(settings: Settings) -> AsyncIterator[int]:
    """Carry migrations while the context is open; yield the port. On leaving every session is closed.

    Raises:
        InvalidRequest: plain text on an address of the network.
        WrongState: an address is taken, or a certificate file cannot be read.
    """
    control_address = _take_control_path(settings.control)
    exits, agents = Exits(SystemClock()), Allowed(frozenset({Role.AGENT}))
    relay = RelayServicer(exits, frame_bytes=settings.frame_bytes)
    async with OwnedTasks() as tasks:
        control = ControlServicer(exits, settings.identity, tasks, frame_bytes=settings.frame_bytes, options=settings.options)
        services = [Service(SERVICE, relay.add_to)]
        controls = [Service(CONTROL_SERVICE, lambda server: rpc.add_TunnelControlServiceServicer_to_server(control, server))]
        async with (
            serve(settings.listen, settings.identity, services, allowed=agents, options=settings.options) as port,
            serve(control_address, None, controls, allowed=agents),
        ):
            settings.control.chmod(0o600)
            try:
                yield port
            finally:
                control.close_all()
    settings.control.unlink(missing_ok=True)


def _take_control_path(path: Path) -> str:
    """Remove what a killed tunnel left at the control path; return the address to serve on.

    Raises:
        WrongState: a tunnel serves there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise WrongState(
                f"control socket {path}: {error.strerror or error}", reason="CONTROL_SOCKET_FAILED", path=path
            ) from error
        else:
            raise WrongState(f"control socket {path}: another ferry-tunnel serves it", reason="ADDRESS_TAKEN", path=path)
    return f"unix:{path.absolute()}"
