"""A byte relay between two UNIX sockets that can go silent or be cut, for real QEMUs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 64 * 1024


class Relay:
    """Listens for a source's channels and joins each to the destination's socket, in order of accept."""

    def __init__(self, listen: Path, connect: Path) -> None:
        self._listen = listen
        self._connect = connect
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._data_flows = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._data_flows.set()
        self._answers_flow.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._listen)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def hold_data(self) -> None:
        """Forward nothing more to the destination."""
        self._data_flows.clear()

    def hold_answers(self) -> None:
        """Forward nothing more to the source."""
        self._answers_flow.clear()

    def release(self) -> None:
        """Forward everything again."""
        self._data_flows.set()
        self._answers_flow.set()

    def cut(self) -> None:
        """Close every connection, both ends, for good: one that is still to be accepted closes too."""
        self._is_cut = True
        for writer in self._writers:
            writer.close()
        self.release()

    async def _serve(self, source: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        self._writers.add(answers)
        destination, data = await asyncio.open_unix_connection(self._connect)
        self._writers.add(data)
        if self._is_cut:
            self.cut()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(source, data, self._data_flows))
            tasks.create_task(_pump(destination, answers, self._answers_flow))
        self._writers -= {answers, data}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            await flows.wait()
            writer.write(chunk)
            await writer.drain()
        await flows.wait()
    writer.close()
