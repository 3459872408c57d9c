"""The proof that a TCP connection from source to destination works and lasts, before QEMU is given the same address.

The destination's agent echoes on the port that its QEMU is going to listen on, for one source at a time; the source's agent sends a
few bytes again and again. QEMU's own port is never probed.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, Self

from common.errors import Unreachable, WrongState

if TYPE_CHECKING:
    from agent.migration.migrate_uri import PortRange

CONNECT_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 1.0
ASK_INTERVAL_S: Final = 0.25
ECHO_LIFETIME_S: Final = 60.0
_WORD: Final = b"ferry-path"


class Echo:
    """Sends back what comes, on one port."""

    def __init__(self, server: asyncio.Server, port: int) -> None:
        self._server = server
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = port

    @classmethod
    async def open(cls, address: str, port: int) -> Self:
        """Listen.

        Raises:
            WrongState: the port is taken.
        """
        writers: set[asyncio.StreamWriter] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                async with asyncio.timeout(ECHO_LIFETIME_S):
                    while word := await reader.read(len(_WORD)):
                        writer.write(word)
                        await writer.drain()
            except (OSError, TimeoutError):
                pass
            finally:
                writers.discard(writer)
                writer.close()

        try:
            server = await asyncio.start_server(answer, address, port, reuse_address=True)
        except OSError as error:
            raise WrongState(f"port {port} on {address} is taken: {error.strerror}", reason="PORT_TAKEN", port=port) from error
        echo = cls(server, port)
        echo._writers = writers
        return echo

    async def close(self) -> None:
        """Listen no more, so that QEMU can."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)


async def prove(host: str, port: int, *, for_s: float) -> None:
    """Exchange bytes with an Echo for a while.

    Raises:
        Unreachable: there is no connection, or it did not last.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"no connection to {host} port {port}: {str(error) or 'no answer'}", reason="PATH_BROKEN") from error
    try:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        while True:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                writer.write(_WORD)
                await reader.readexactly(len(_WORD))
            if loop.time() >= until_s:
                return
            await asyncio.sleep(ASK_INTERVAL_S)
    except (OSError, TimeoutError, EOFError) as error:
        why = str(error) or "no answer"
        raise Unreachable(f"the way to {host} port {port} did not last: {why}", reason="PATH_BROKEN") from error
    finally:
        writer.transport.abort()  # a reset leaves no TIME_WAIT behind


def first_free_port(address: str, pool: PortRange, host: str) -> int:
    """Find a port of the pool that nobody listens on.

    Raises:
        WrongState: all are taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in range(pool.first, pool.last + 1):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise WrongState(f"no free port between {pool.first} and {pool.last} on {host}", reason="PORT_POOL_EXHAUSTED")
