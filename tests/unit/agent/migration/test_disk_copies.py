"""When a source gives up a move because its QEMU says nothing while disks are copied."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from agent.blockjobs.mirrors import copy_name
from agent.migration import disk_copies
from agent.migration import outgoing as out
from agent.migration.disk_copies import DiskCopies
from agent.migration.order import DiskCopy
from agent.qemu.block_commands import BlockCommands
from agent.qemu.block_status import BlockJobReport, JobReport, JobStatus
from agent.qemu.errors import QemuSilent

ENOUGH = 5


class FallsSilent(BlockCommands):
    """Of a QEMU that answers once and no more."""

    def __init__(self, is_enough: asyncio.Event) -> None:
        self.silences = 0
        self._has_answered = False
        self._is_enough = is_enough

    async def query_block_jobs(self) -> tuple[BlockJobReport, ...]:
        if not self._has_answered:
            return ()
        self.silences += 1
        if self.silences == ENOUGH:
            self._is_enough.set()
        raise QemuSilent("query-block-jobs: no answer")

    async def query_jobs(self) -> tuple[JobReport, ...]:
        self._has_answered = True
        return (JobReport(copy_name("move", 0), "mirror", JobStatus.READY, 1, 1, ""),)


class Sending:
    """A session that sends memory, its disk copied."""

    def __init__(self, pid: int) -> None:
        self.phase = out.Transferring()
        self.facts = SimpleNamespace(migration_id="move", peer="host-b", copies=(DiskCopy("vda", "/copy", 1, is_new=True),))
        self.process = SimpleNamespace(pid=pid)
        self.is_enough = asyncio.Event()
        self.blocks = FallsSilent(self.is_enough)
        self.qemu = SimpleNamespace(block=self.blocks)
        self.reasons: list[str] = []

    async def wait_phase(self, *_: type) -> None:
        pass

    async def wait_attached(self) -> Sending:
        return self

    @contextmanager
    def subscribe(self):
        yield _nothing()

    def observe(self, event: out.Event) -> None:
        assert isinstance(event, out.CancelRequested)
        self.reasons.append(event.cause.reason)
        self.is_enough.set()

    async def watch(self) -> None:
        """Follow the copies until the move is given up, or QEMU was silent often enough."""
        session: Any = self
        copies = DiskCopies(session, session)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(copies.watch(after_restart=False))
            await copies.take_up()
            await self.is_enough.wait()
            watching.cancel()


async def _nothing():
    await asyncio.Event().wait()
    yield


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(disk_copies, "POLL_INTERVAL_S", 0.001)
    monkeypatch.setattr(disk_copies, "LOOK_INTERVAL_S", 0.001)


@pytest.fixture
async def idle():
    process = await asyncio.create_subprocess_exec("sleep", "60")
    yield process.pid
    process.kill()
    await process.wait()


async def test_a_silent_qemu_without_work_waits_for_its_peer_and_is_given_up(idle):
    session = Sending(idle)

    await session.watch()

    assert session.reasons == ["DISK_COPY_STALLED"]


async def test_a_silent_qemu_with_work_is_held_up_by_its_host_and_is_waited_for():
    session = Sending(os.getpid())

    await session.watch()

    assert session.reasons == []


async def test_a_silent_qemu_with_work_is_waited_for_no_longer_than_the_limit(monkeypatch):
    monkeypatch.setattr(disk_copies, "OVERLOAD_LIMIT_S", 0.0)
    session = Sending(os.getpid())

    await session.watch()

    assert session.reasons == ["DISK_COPY_STALLED"]
    assert session.blocks.silences < ENOUGH
