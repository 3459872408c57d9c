"""A guest agent that answers on a UNIX socket as `qemu-ga` does; tests/e2e/test_guest_clock.py holds it against the real one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_NS = 1_000_000_000


@dataclass
class FakeGuestAgent:
    """An agent and its guest's clock.

    Attributes:
        behind_s: how far the clock is behind.
        stale: bytes that an earlier client has left unread.
        refusals: error texts by command; a refused guest-set-time sets the clock all the same with `sets_anyway`.
        is_mute: it says nothing at all.
        answers: what is said instead, by command.
    """

    behind_s: float = 0.0
    stale: bytes = b""
    refusals: dict[str, str] = field(default_factory=dict)
    sets_anyway: bool = False
    is_mute: bool = False
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.stale)
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            command = request["execute"]
            self.asked.append(command)
            if not self.is_mute:
                writer.write(self.answers.get(command) or self._answer(command, request["arguments"]))
        writer.close()

    def _answer(self, command: str, arguments: dict[str, int]) -> bytes:
        if command == "guest-set-time" and (command not in self.refusals or self.sets_anyway):
            self.behind_s = time.time() - arguments["time"] / _NS
        if command in self.refusals:
            return _line({"error": {"class": "GenericError", "desc": self.refusals[command]}})
        match command:
            case "guest-sync-delimited":
                return b"\xff" + _line({"return": arguments["id"]})
            case "guest-get-time":
                return _line({"return": round((time.time() - self.behind_s) * _NS)})
            case _:
                return _line({"return": {}})


@asynccontextmanager
async def fake_guest_agent(agent: FakeGuestAgent, path: Path) -> AsyncIterator[None]:
    """Serve it."""
    server = await asyncio.start_unix_server(agent.serve, path)
    async with server:
        yield


def _line(answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"
