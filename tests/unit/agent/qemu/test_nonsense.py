"""A QEMU that answers nonsense harms itself alone, and is understood again when it answers well."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.qemu import monitor as module
from agent.qemu.connection import IN_BAND_LIMIT
from agent.qemu.errors import NotUnderstood
from agent.qemu.monitor import Monitor
from common.errors import FerryError
from tests.fakes.qemu import FakeProcess, FakeQemu

Answer = Callable[[str], bytes]
GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}\r\n'
DEEP = b"[" * 100_000


def well(identifier: str) -> bytes:
    return json.dumps({"return": {"status": "running", "running": True, "singlestep": False}, "id": identifier}).encode()


class Babbler:
    """A QMP server whose answers to all but the negotiation are what `answer` makes of their ids."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.process = FakeProcess()
        self.answer = answer
        self.greeting = GREETING
        self.connection_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.path))
        server = await asyncio.start_unix_server(self._serve, sock=listening)
        try:
            yield
        finally:
            server.close()
            self.process.exited.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        writer.write(self.greeting)
        decoder, text = json.JSONDecoder(), ""
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                text += chunk.decode()
                while text:
                    message, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    is_ours = message.get("execute") == "qmp_capabilities"
                    if said := b'{"return": {}}' if is_ours else self.answer(message["id"]):
                        writer.write(said + b"\r\n")
        writer.close()


@asynccontextmanager
async def babbling(directory: Path, answer: Answer) -> AsyncIterator[tuple[Babbler, Monitor]]:
    babbler = Babbler(directory / "qmp", answer)
    async with babbler.serving(), Monitor(babbler.path, babbler.process, vm="web") as monitor:
        yield babbler, monitor


@pytest.mark.parametrize(
    "answer",
    [
        lambda i: json.dumps({"error": "no", "id": i}).encode(),
        lambda i: json.dumps({"error": {"class": 5, "desc": []}, "id": i}).encode(),
        lambda i: json.dumps({"error": None, "id": i}).encode(),
        lambda i: json.dumps({"id": i}).encode(),
    ],
)
async def test_an_error_of_an_odd_shape_is_told_as_that(answer: Answer, tmp_path: Path):
    async with babbling(tmp_path, answer) as (_, monitor):
        with pytest.raises(NotUnderstood, match="query-status: QEMU's answer is neither"):
            await monitor.execute("query-status")


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: DEEP,
        lambda i: b'{"return": %s, "id": "%s"}' % (DEEP, i.encode()),
        lambda _: b'{"return": {}, "id": ["a"]}',
        lambda _: b'{"return": {}, "id": {"a": 1}}',
        lambda _: b"\xff\xfe\xfd",
        lambda _: b"[]",
        lambda _: b'{"error": {}}',
        lambda _: b'{"event": "X", "timestamp": {"seconds": 1' + b"0" * 400 + b"}}",
    ],
)
async def test_what_is_no_answer_ends_the_connection_alone_and_the_next_one_is_used(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.01)
    async with babbling(tmp_path, answer) as (babbler, monitor):
        with suppress(FerryError):
            await monitor.execute("query-status", timeout_s=0.05)
        babbler.answer = well

        assert await monitor.execute("query-status", timeout_s=5)


async def test_answers_to_what_was_not_asked_do_not_use_up_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.01)
    async with babbling(tmp_path, lambda _: b'{"return": {}, "id": "another"}') as (babbler, monitor):
        for _ in range(2 * IN_BAND_LIMIT):
            with suppress(FerryError):
                await monitor.execute("query-status", timeout_s=0.01)
        babbler.answer = well

        assert await monitor.execute("query-status", timeout_s=5)


async def test_an_answer_that_was_left_out_gives_its_slot_back_with_the_next_one(tmp_path: Path):
    is_left_out = True

    def every_second(identifier: str) -> bytes:
        nonlocal is_left_out
        is_left_out = not is_left_out
        return b"" if is_left_out else well(identifier)

    async with babbling(tmp_path, every_second) as (babbler, monitor):
        for _ in range(3 * IN_BAND_LIMIT):
            with suppress(FerryError):
                await monitor.execute("query-status", timeout_s=0.01)

        babbler.answer = well

        assert await monitor.execute("query-status", timeout_s=5)
        assert babbler.connection_count == 1


async def test_a_qemu_that_ends_each_connection_is_not_dialled_all_the_time(tmp_path: Path):
    async with babbling(tmp_path, lambda _: b"[]") as (babbler, monitor):
        for _ in range(20):
            with suppress(FerryError):
                await monitor.execute("query-status", timeout_s=0.01)

        assert babbler.connection_count < 8


async def test_a_well_behaved_qemu_is_found_at_once_when_its_connection_was_lost(tmp_path: Path):
    async with FakeQemu(tmp_path / "qmp") as fake, Monitor(fake.path, fake.process, vm="web") as monitor:
        fake.drop_connection()

        assert await monitor.execute("query-status", timeout_s=1)
