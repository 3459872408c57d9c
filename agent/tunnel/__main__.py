"""The command `ferry-tunnel`: the data plane of one host."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import structlog

from agent.tunnel.app import Settings, tunnel
from agent.tunnel.pump import DEFAULT_FRAME_BYTES
from common.errors import FerryError, InvalidRequest
from common.identity import Identity
from common.telemetry import telemetry

_log = structlog.get_logger()


def main() -> None:
    """Carry migrations until SIGTERM or SIGINT."""
    arguments = _parser().parse_args()
    try:
        with telemetry("ferry-tunnel", arguments.name, log_level=arguments.log_level):
            asyncio.run(_serve(arguments))
    except FerryError as error:
        sys.exit(f"ferry-tunnel: {error.text}")


def _parser() -> argparse.ArgumentParser:
    # fmt: off
    parser = argparse.ArgumentParser(prog="ferry-tunnel", description="The data plane of one host: carries migrations over gRPC.")
    parser.add_argument("--listen", default="127.0.0.1:7702", metavar="HOST:PORT", help="address for other tunnels (%(default)s)")
    parser.add_argument("--control", type=Path, default=Path("/var/lib/ferry/tunnel.sock"), metavar="PATH",
                        help="UNIX socket for the agent (%(default)s)")
    parser.add_argument("--pki", type=Path, metavar="DIR", help="directory with ca.pem, cert.pem and key.pem")
    parser.add_argument("--insecure", action="store_true", help="plain text, on loopback only")
    parser.add_argument("--name", default=socket.gethostname(), help="name of this host (%(default)s)")
    parser.add_argument("--frame-size", type=int, default=DEFAULT_FRAME_BYTES, metavar="BYTES",
                        help="most bytes of a data frame (%(default)s)")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error (%(default)s)")
    # fmt: on
    return parser


async def _serve(arguments: argparse.Namespace) -> None:
    if arguments.pki is None and not arguments.insecure:
        raise InvalidRequest("no certificates: give --pki DIR, or --insecure for plain text on loopback", reason="CONFIG_INVALID")
    identity = None if arguments.pki is None else Identity.in_directory(arguments.pki)
    settings = Settings(arguments.listen, arguments.control, identity, frame_bytes=arguments.frame_size)
    os.umask(0o077)  # the control socket must at no moment be open to others
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with tunnel(settings) as port:
        _log.info("ready", host=arguments.name, listen=settings.listen, port=port, control=str(settings.control))
        await stopping.wait()
    _log.info("stopped", host=arguments.name)


if __name__ == "__main__":
    main()
