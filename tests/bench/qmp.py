"""The least QMP that can drive a migration: what the benchmark compares Ferry with.

One connection, no task of its own, no reconnect, no out-of-band commands. Not for the product.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REPLY_TIMEOUT_S = 20.0


class QmpError(Exception):
    """QEMU refused a command, or its migration failed, or it is gone."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of QEMU, and when it was received here (`time.monotonic()`)."""

    name: str
    data: Mapping[str, object]
    received_at_s: float


class Qmp(asyncio.Protocol):
    """A QMP connection; `Qmp.open` makes it. All events are kept in `events`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._replies: list[asyncio.Future[object]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._is_lost = False

    @classmethod
    async def open(cls, path: Path) -> Qmp:
        """Connect to a QEMU whose monitor listens on `path`, and negotiate."""
        loop = asyncio.get_running_loop()
        _, qmp = await loop.create_unix_connection(cls, str(path))
        await qmp.execute("qmp_capabilities")
        return qmp

    def close(self) -> None:
        """Drop the connection; QEMU stays as it is."""
        if self._transport is not None:
            self._transport.close()

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Send a command and return its reply.

        Raises:
            QmpError: QEMU refused it or is gone.
            TimeoutError: no reply in 20 s.
        """
        if self._transport is None or self._is_lost:
            raise QmpError(f"{command}: no connection")
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        message = {"execute": command, "arguments": dict(arguments or {})}
        self._transport.write(json.dumps(message).encode())
        async with asyncio.timeout(_REPLY_TIMEOUT_S):
            return await reply

    async def wait_event(self, name: str, *, status: str | None = None, after: int = 0, timeout_s: float = 60.0) -> Event:
        """Return the first event of that name (and migration status) from index `after` on.

        Raises:
            QmpError: the migration failed or was cancelled meanwhile, or QEMU is gone.
            TimeoutError: it did not come.
        """
        position = after
        async with asyncio.timeout(timeout_s):
            while True:
                while position < len(self.events):
                    event = self.events[position]
                    position += 1
                    seen = event.data.get("status")
                    if event.name == name and status in {None, seen}:
                        return event
                    if event.name == "MIGRATION" and seen in {"failed", "cancelled"}:
                        raise QmpError(f"waiting for {name} {status}: the migration {seen}")
                if self._is_lost:
                    raise QmpError(f"waiting for {name} {status}: QEMU is gone")
                news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(news)
                await news

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand replies and events to those who wait; called by the event loop."""
        at_s = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "event" in message:
                self.events.append(Event(message["event"], message.get("data", {}), at_s))
            elif "return" in message or "error" in message:
                self._answer(message)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits; called by the event loop."""
        self._is_lost = True
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(QmpError(f"QEMU is gone: {exc or 'end of file'}"))
        self._replies.clear()
        self._wake()

    def _answer(self, message: dict[str, Any]) -> None:
        reply = self._replies.pop(0)
        if reply.done():
            return
        if "error" in message:
            reply.set_exception(QmpError(message["error"]["desc"]))
        else:
            reply.set_result(message["return"])

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            if not news.done():
                news.set_result(None)
