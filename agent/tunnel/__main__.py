"""The command `ferry-tunnel`: the data plane of one host."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import structlog

from agent.tunnel.entrance import SERVICE
from agent.tunnel.exits import Exits
from agent.tunnel.pump import DEFAULT_FRAME_BYTES
from agent.tunnel.servicer import ControlServicer, DataServicer
from common.clock import SystemClock
from common.errors import FerryError, InvalidRequest
from common.pki import Identity, Role
from common.rpc.server import Allowed, Service, serve
from common.telemetry import telemetry
from ferry.tunnel.v1 import tunnel_control_service_pb2_grpc as rpc

CONTROL_SERVICE: Final = "ferry.tunnel.v1.TunnelControlService"
MIN_FRAME_BYTES: Final = 4096
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
# Chosen by measurement: docs/decisions/0003-tunnel-frames.md.
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.http2.max_frame_size", 1024 * 1024),
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    ("grpc.http2.write_buffer_size", 1024 * 1024),
)
_log = structlog.get_logger()


def main() -> None:
    """Carry migrations until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="ferry-tunnel", description="The data plane of one host: carries migrations over gRPC.")
    parser.add_argument("--listen", default="127.0.0.1:7702", metavar="HOST:PORT", help="address for other tunnels (%(default)s)")
    parser.add_argument(
        "--control",
        type=Path,
        default=Path("/var/lib/ferry/tunnel.sock"),
        metavar="PATH",
        help="UNIX socket for the agent (%(default)s)",
    )
    parser.add_argument("--pki", type=Path, metavar="DIR", help="directory with ca.pem, cert.pem and key.pem")
    parser.add_argument("--insecure", action="store_true", help="plain text, on loopback only")
    parser.add_argument("--name", default=socket.gethostname(), help="name of this host (%(default)s)")
    parser.add_argument(
        "--frame-size", type=int, default=DEFAULT_FRAME_BYTES, metavar="BYTES", help="most bytes of a data frame (%(default)s)"
    )
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error (%(default)s)")
    arguments = parser.parse_args()
    try:
        with telemetry("ferry-tunnel", arguments.name, log_level=arguments.log_level):
            asyncio.run(_serve(arguments))
    except FerryError as error:
        sys.exit(f"ferry-tunnel: {error.text}")


async def _serve(arguments: argparse.Namespace) -> None:
    if arguments.pki is None and not arguments.insecure:
        raise InvalidRequest("no certificates: give --pki DIR, or --insecure for plain text on loopback", reason="CONFIG_INVALID")
    if not MIN_FRAME_BYTES <= arguments.frame_size <= MAX_FRAME_BYTES:
        raise InvalidRequest(
            f"frame-size {arguments.frame_size}: {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES} bytes are possible", reason="CONFIG_INVALID"
        )
    identity = None if arguments.pki is None else Identity.in_directory(arguments.pki)
    exits = Exits(SystemClock())
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with asyncio.TaskGroup() as tasks:
        data = DataServicer(exits, frame_bytes=arguments.frame_size)
        control = ControlServicer(exits, identity, tasks, frame_bytes=arguments.frame_size, options=CHANNEL_OPTIONS)
        services = [Service(SERVICE, data.add_to)]
        controls = [Service(CONTROL_SERVICE, lambda server: rpc.add_TunnelControlServiceServicer_to_server(control, server))]
        agents = Allowed(frozenset({Role.AGENT}))
        arguments.control.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments.control.unlink(missing_ok=True)
        async with (
            serve(arguments.listen, identity, services, allowed=agents, options=CHANNEL_OPTIONS),
            serve(f"unix:{arguments.control}", None, controls, allowed=agents),
        ):
            arguments.control.chmod(0o600)
            _log.info("ready", host=arguments.name, listen=arguments.listen, control=str(arguments.control))
            await stopping.wait()
            control.close_all()


if __name__ == "__main__":
    main()
