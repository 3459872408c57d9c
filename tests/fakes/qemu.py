"""A fake QEMU: QMP over a UNIX socket in this process, without a guest.

What it answers to queries was recorded from the version it plays; how its migration goes on is in `qemu_migration`. A
test turns its switches: mute, dead, disconnected, held at a status, refusing a command. It takes one client at a time
and greets the next when that one left, stops reading at eight unanswered in-band commands, and answers out-of-band
commands while it is mute, all as QEMU does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

from tests.fakes.qemu_answers import FakeAnswers
from tests.fakes.qemu_migration import FakeMigration, Refused
from tests.fakes.qemu_network import FakeNetwork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    Json = dict[str, object]

IN_BAND_LIMIT = 8
CHUNK_BYTES = 1 << 16


class FakeProcess:
    """The process of a fake: this one, until the fake dies."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.exited = asyncio.Event()
        self.is_held = False

    def is_alive(self) -> bool:
        """Say whether the fake lives."""
        return not self.exited.is_set()

    def is_stopped(self) -> bool:
        """Say whether the test pretends a SIGSTOP."""
        return self.is_held

    async def wait_exit(self) -> None:
        """Return when the fake has died."""
        await self.exited.wait()


class FakeQemu:
    """One fake QEMU; use it as an async context.

    Attributes:
        migration: the model of the guest and its migration, with its switches `holds`, `release`, `break_channel`.
        answers: what it says, with `refusals` and `properties` for a test to set.
        commands: what was executed, in order, as (name, arguments).
        stale_replies: replies that the next client gets before the one to its `qmp_capabilities`.
    """

    def __init__(self, path: Path, *, version: str = "7.2", network: FakeNetwork | None = None, is_incoming: bool = False) -> None:
        self.path = path
        self.version = version
        self.process = FakeProcess()
        self.migration = FakeMigration(version, network or FakeNetwork(), self.emit, is_incoming=is_incoming)
        self.migration.die = self.die
        self.answers = FakeAnswers(version, self.migration, self.emit)
        self.commands: list[tuple[str, Mapping[str, object]]] = []
        self.stale_replies: list[Json] = []
        self._is_mute = False
        self.stamps_age_s = 0.0
        self._pending: deque[Json] = deque()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        self._writers: set[asyncio.StreamWriter] = set()
        self._client: asyncio.StreamWriter | None = None
        self._has_negotiated = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.die()

    # Switches

    def mute(self) -> None:
        """Leave in-band commands unanswered from now on, as a blocked main loop does."""
        self._is_mute = True

    def unmute(self) -> None:
        """Answer again, first what has piled up."""
        self._is_mute = False
        self._drain()

    def drop_connection(self) -> None:
        """End the connection of the client, not of those who wait for their turn."""
        if self._client is not None:
            self._client.close()

    def die(self) -> None:
        """End, as by SIGKILL."""
        if not self.process.is_alive():
            return
        self._server.close()
        for writer in self._writers:
            with suppress(OSError):  # the client may have left
                writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)  # at once, as a kernel does
            writer.close()
        self._client = None
        self.migration.end()
        self.process.exited.set()

    def emit(self, name: str, details: Json | None = None) -> None:
        """Send an event to the client, if there is one."""
        seconds, microseconds = divmod(time.time_ns() // 1000 - round(self.stamps_age_s * 1e6), 10**6)
        stamp = {"seconds": seconds, "microseconds": microseconds}
        event: Json = {"event": name, "timestamp": stamp}
        if self._has_negotiated:
            self._send(event | ({"data": details} if details else {}))

    # The server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        async with self._turn:
            self._client = writer
            self._send({"QMP": {"version": self.answers.give("query-version", {}), "capabilities": ["oob"]}})
            with suppress(OSError):
                async for message in _messages(reader):
                    await self._receive(message)
            self._client = None
            self._has_negotiated = False
            self._pending.clear()
        writer.close()
        self._writers.discard(writer)

    async def _receive(self, message: Json) -> None:
        if "exec-oob" in message:
            self._answer(message, str(message["exec-oob"]))
            return
        self._pending.append(message)
        self._drain()
        while len(self._pending) >= IN_BAND_LIMIT and self.process.is_alive():
            self._room.clear()
            await self._room.wait()

    def _drain(self) -> None:
        while self._pending and not self._is_mute:
            message = self._pending.popleft()
            self._answer(message, str(message["execute"]))
        self._room.set()

    def _answer(self, message: Json, command: str) -> None:
        arguments = cast("Json", message.get("arguments", {}))
        identifier: Json = {"id": message["id"]} if "id" in message else {}
        try:
            if command == "qmp_capabilities":
                self._negotiate()
                reply: object = {}
            else:
                self.commands.append((command, arguments))
                reply = self.answers.give(command, arguments)
        except Refused as error:
            self._send({"error": {"class": error.error_class, "desc": str(error)}} | identifier)
        else:
            self._send({"return": reply} | identifier)
        if command == "quit":
            asyncio.get_running_loop().call_soon(self.die)

    def _negotiate(self) -> None:
        while self.stale_replies:
            self._send(self.stale_replies.pop(0))
        self._has_negotiated = True

    def _send(self, message: Json) -> None:
        if self._client is not None and not self._client.is_closing():
            self._client.write(json.dumps(message).encode() + b"\r\n")


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[Json]:
    """Split what a client sends; nothing stands between its messages."""
    decoder = json.JSONDecoder()
    text = ""
    while chunk := await reader.read(CHUNK_BYTES):
        text += chunk.decode()
        while text:
            try:
                message, end = decoder.raw_decode(text)
            except ValueError:
                break  # the rest is to come
            text = text[end:].lstrip()
            yield cast("Json", message)
