"""A move between two QEMUs of a lab, and how tests wait for what becomes of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.qemu.status import MigrationReport, MigrationStatus, RunState, migration_status_of
from agent.qemu.subscription import Event, Gone, Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.qemu.commands import Qemu
    from tests.contract.lab import Lab, Wire

SLOW_BYTES_PER_S = 4096
NO_LIMIT_BYTES_PER_S = 1 << 40
REACH_TIMEOUT_S = 10.0
POLL_S = 0.002

S = MigrationStatus
CAPABILITIES = ("events", "return-path", "pause-before-switchover", "late-block-activate")


@dataclass
class Move:
    """A source and a destination that listens, with a relay between."""

    source: Qemu
    destination: Qemu
    wire: Wire
    uri: str
    story: Subscription

    async def start(self, *, reach: MigrationStatus) -> None:
        """Start the move and wait until the source has reached a status; ACTIVE is held by a low bandwidth."""
        is_slow = reach is S.ACTIVE
        await self.source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S if is_slow else NO_LIMIT_BYTES_PER_S})
        await self.source.migrate(self.uri)
        await self.wait(reach)

    async def start_and_withhold_the_answer(self) -> None:
        """Bring the source to `device`, with a destination that has loaded everything."""
        await self.start(reach=S.PRE_SWITCHOVER)
        self.wire.hold_answers()
        await self.source.migrate_continue()
        await reached(self.destination, S.COMPLETED)
        assert (await self.source.query_migrate()).status is S.DEVICE

    async def wait(self, *statuses: MigrationStatus) -> None:
        """Wait for an event of the source that tells one of the statuses."""
        async with asyncio.timeout(REACH_TIMEOUT_S):
            async for notice in self.story:
                if isinstance(notice, Event) and migration_status_of(notice) in statuses:
                    return


@asynccontextmanager
async def a_move(lab: Lab, *, exit_on_error: bool | None = None) -> AsyncIterator[Move]:
    source_uri, destination_uri = lab.unix_uri(), lab.unix_uri()
    async with (
        lab.qemu() as source,
        lab.qemu(is_incoming=True) as destination,
        lab.wire(source_uri, destination_uri) as wire,
    ):
        for qemu in (source, destination):
            await qemu.set_capabilities(dict.fromkeys(CAPABILITIES, True))
        await destination.migrate_incoming(destination_uri, exit_on_error=exit_on_error)
        with source.monitor.subscribe() as story:
            yield Move(source, destination, wire, source_uri, story)


async def reached(qemu: Qemu, status: MigrationStatus) -> MigrationReport:
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while (report := await qemu.query_migrate()).status is not status:  # noqa: ASYNC110  (QEMU is polled)
            await asyncio.sleep(POLL_S)
    return report


async def rests_in(qemu: Qemu, state: RunState) -> None:
    """Wait for a run state; `finish-migrate` may outlast the source's `completed` by some milliseconds."""
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while await qemu.query_status() is not state:  # noqa: ASYNC110  (QEMU is polled)
            await asyncio.sleep(POLL_S)


async def names_until(story: Subscription, *last: str) -> list[str]:
    """Collect what the events say, `STOP` or a migration's status, up to one of them."""
    names: list[str] = []
    async with asyncio.timeout(REACH_TIMEOUT_S):
        async for notice in story:
            assert isinstance(notice, Event)
            status = migration_status_of(notice)
            if notice.name != "MIGRATION_PASS":
                names.append(status.value if status else notice.name)
            if names and names[-1] in last:
                return names
    raise AssertionError(names)


async def wait_gone(qemu: Qemu) -> None:
    with qemu.monitor.subscribe() as notices:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            async for notice in notices:
                if isinstance(notice, Gone):
                    return
