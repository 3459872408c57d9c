"""Counts what goes over the connection of a disk's copy, while it is open.

Between two QEMUs that is what the kernel says of the TCP connection: everything QEMU handed it, encryption included. Through the
tunnel it is what the source's tunnel took from QEMU: NBD alone.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

from agent.tunnel.client import TunnelClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deploy.lab.ports import PortRange

POLL_S: Final = 0.25
# Less goes over connections that only look whether there is a way. Memory waits until the disk is copied.
_COPY_BYTES: Final = 1 << 20
_SOCKET: Final = re.compile(r"\d+ +\d+ +(?P<ends>\S+ +\S+) .*\bbytes_sent:(?P<sent>\d+)")


class Meter(Protocol):
    """Knows how many bytes have gone to the destination."""

    async def read(self) -> int:
        """Return how many so far; the last value stays when the connection is closed."""


class TcpMeter:
    """Of the first connection to some ports that carries a disk."""

    def __init__(self, ports: PortRange) -> None:
        self._filter = f"( dport >= :{ports.first} and dport <= :{ports.last} )"
        self._ends = ""
        self._bytes = 0

    async def read(self) -> int:
        """Ask the kernel."""
        process = await asyncio.create_subprocess_exec(
            "ss", "-tinHO", "state", "connected", self._filter, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
        for found in filter(None, map(_SOCKET.search, said.decode().splitlines())):
            sent = int(found["sent"])
            if not self._ends and sent >= _COPY_BYTES:
                self._ends = found["ends"]
            if found["ends"] == self._ends:
                self._bytes = sent
        return self._bytes


class TunnelMeter:
    """Of the sessions of disks of the source's tunnel."""

    def __init__(self, control_path: Path) -> None:
        self._path = control_path
        self._bytes: dict[str, int] = {}

    async def read(self) -> int:
        """Ask the tunnel."""
        async with TunnelClient(self._path) as tunnel:
            for session in await tunnel.list_sessions():
                if session.session_id.endswith("-disks"):
                    self._bytes[session.session_id] = session.forward_bytes
        return sum(self._bytes.values())


@asynccontextmanager
async def followed(meter: Meter) -> AsyncIterator[None]:
    """Read the meter over and over while the context is open, and once more at its end."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_follow(meter))
        yield
        reading.cancel()
    await meter.read()


async def _follow(meter: Meter) -> None:
    while True:
        await meter.read()
        await asyncio.sleep(POLL_S)
