"""Both ends of QEMU's connections, a network that can go silent, and two tunnels with certificates between them."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from agent.tunnel.app import CHANNEL_OPTIONS, Settings, tunnel
from agent.tunnel.client import TunnelClient
from common.identity import Identity

PATIENCE_S = 10.0
LOOPBACK = "127.0.0.1"
SESSION = "migration-1"
TOKEN = "a-token-of-32-random-bytes-as-text"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


class End:
    """A connection as QEMU has it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection

    async def send(self, content: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(self.socket, content)

    async def receive(self, count: int = 1 << 16) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.get_running_loop().sock_recv(self.socket, count)

    async def receive_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count and (content := await self.receive(count - len(received))):
            received += content
        return bytes(received)

    async def receive_all(self) -> bytes:
        received = bytearray()
        while content := await self.receive(1 << 20):
            received += content
        return bytes(received)

    async def wait_readable(self) -> None:
        """Return when there is something to read."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._peek():  # noqa: ASYNC110 - asyncio cannot wait for bytes and leave them
                await asyncio.sleep(0.001)

    async def wait_end(self) -> None:
        """Return when the connection is over, in order or not."""
        with suppress(ConnectionError):
            await self.receive_all()

    def _peek(self) -> bytes:
        try:
            return self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return b""

    def end_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class Destination:
    """Listens as a QEMU that waits for a migration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(64)

    async def accept(self) -> End:
        async with asyncio.timeout(PATIENCE_S):
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return End(connection)

    def has_visitor(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True

    def close(self) -> None:
        self._listener.close()


class Wire:
    """A TCP relay to a port of the loopback that can go silent."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._flows = asyncio.Event()
        self._flows.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._flows.set()

    def silence(self) -> None:
        """Forward nothing more, in neither direction, and close nothing."""
        self._flows.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(reader, far_writer))
            tasks.create_task(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(content)
                await writer.drain()
            await self._flows.wait()
        writer.close()


@dataclass
class Pair:
    """Two tunnels: the source's, the destination's, and the agents' clients of both.

    Attributes:
        peer_port: what the source dials; the destination's port unless there is a wire between.
    """

    directory: Path
    source: TunnelClient
    destination: TunnelClient
    peer_port: int
    wire: Wire | None = None
    qemu: Destination = field(init=False)

    def __post_init__(self) -> None:
        self.qemu = Destination(self.directory / "in.sock")

    @property
    def entrance_path(self) -> Path:
        return self.directory / "out.sock"

    async def open_exit(
        self, channel_count: int = 1, *, token: str = TOKEN, session: str = SESSION, lifetime_s: float = 60.0
    ) -> None:
        digest = hashlib.sha256(token.encode()).digest()
        await self.destination.open_exit(session, digest, self.qemu.path, channel_count, lifetime_s)

    async def open_entrance(self, channel_count: int = 1, *, token: str = TOKEN, session: str = SESSION) -> float:
        address = f"{LOOPBACK}:{self.peer_port}"
        return await self.source.open_entrance(session, token, self.entrance_path, address, channel_count)

    async def open(self, channel_count: int = 1) -> None:
        await self.open_exit(channel_count)
        await self.open_entrance(channel_count)

    def dial(self) -> End:
        """Connect as the source's QEMU does."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.entrance_path))
        return End(connection)

    async def connect(self) -> tuple[End, End]:
        """Return both ends of a new connection: the source QEMU's and the destination QEMU's."""
        return self.dial(), await self.qemu.accept()


@asynccontextmanager
async def pair(
    directory: Path,
    identity: Identity | None,
    *,
    options: tuple[tuple[str, int], ...] = (),
    frame_bytes: int = 256 * 1024,
    has_wire: bool = False,
) -> AsyncIterator[Pair]:
    """Run two tunnels in this process."""
    async with AsyncExitStack() as stack:
        clients, ports = [], []
        for name in ("source", "destination"):
            control = directory / f"{name}.control"
            settings = Settings(
                f"{LOOPBACK}:0",
                control,
                identity,
                frame_bytes=frame_bytes,
                options=tuple({**dict(CHANNEL_OPTIONS), **dict(options)}.items()),
            )
            ports.append(await stack.enter_async_context(tunnel(settings)))
            clients.append(await stack.enter_async_context(TunnelClient(control)))
        wire = await stack.enter_async_context(Wire(ports[1])) if has_wire else None
        both = Pair(directory, clients[0], clients[1], wire.port if wire else ports[1], wire)
        stack.callback(both.qemu.close)
        yield both
