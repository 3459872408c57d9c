"""What the agent relies on in a migration, on fakes and on real QEMUs."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent.qemu.errors import QemuRefused
from agent.qemu.machine import Endpoint
from agent.qemu.status import MigrationReport, MigrationStatus, RunState, migration_status_of
from agent.qemu.subscription import Event, Gone, Subscription
from tests.fakes.network import LOOPBACK, closed_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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

    async def wait(self, status: MigrationStatus) -> None:
        """Wait for the source's event."""
        async with asyncio.timeout(REACH_TIMEOUT_S):
            async for notice in self.story:
                if isinstance(notice, Event) and migration_status_of(notice) is status:
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


async def names_until(story: Subscription, last: str) -> list[str]:
    """Collect what the events say, `STOP` or a migration's status, up to one of them."""
    names: list[str] = []
    async with asyncio.timeout(REACH_TIMEOUT_S):
        async for notice in story:
            assert isinstance(notice, Event)
            status = migration_status_of(notice)
            if notice.name != "MIGRATION_PASS":
                names.append(status.value if status else notice.name)
            if names[-1:] == [last]:
                return names
    raise AssertionError(names)


async def wait_gone(qemu: Qemu) -> None:
    with qemu.monitor.subscribe() as notices:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            async for notice in notices:
                if isinstance(notice, Gone):
                    return


async def test_a_move_ends_with_a_loaded_guest_that_waits(lab: Lab):
    async with a_move(lab) as move:
        await move.source.migrate(move.uri)
        before = await names_until(move.story, "pre-switchover")
        assert await move.source.query_status() is RunState.FINISH_MIGRATE
        await move.source.migrate_continue()
        after = await names_until(move.story, "completed")

        assert before == ["setup", "active", "STOP", "pre-switchover"]
        assert after == ["device", "completed"]
        await rests_in(move.source, RunState.POSTMIGRATE)
        assert await move.destination.query_status() is RunState.PAUSED
        report = await move.source.query_migrate()
        assert report.status is S.COMPLETED
        assert report.ram is not None
        assert report.ram.remaining_bytes == 0
        assert report.downtime_ms is not None
        assert (await move.destination.query_migrate()).status is S.COMPLETED
        assert not await move.source.has_migration_channels()


async def test_the_destination_runs_when_told_and_says_so(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.migrate_continue()
        await move.wait(S.COMPLETED)

        with move.destination.monitor.subscribe() as story:
            await move.destination.cont()

            assert await names_until(story, "RESUME") == ["RESUME"]
        assert await move.destination.query_status() is RunState.RUNNING


async def test_a_guest_paused_during_the_transfer_moves_on_paused(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.ACTIVE)
        await move.source.stop()
        await move.source.set_parameters({"max-bandwidth": NO_LIMIT_BYTES_PER_S})
        await move.wait(S.PRE_SWITCHOVER)
        await move.source.migrate_continue()
        await move.wait(S.COMPLETED)

        assert await move.destination.query_status() is RunState.PAUSED


async def test_a_paused_guest_stays_paused_at_the_source_after_a_cancel(lab: Lab):
    async with a_move(lab) as move:
        await move.source.stop()
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.migrate_cancel()
        await move.wait(S.CANCELLED)

        expected = RunState.POSTMIGRATE if lab.version == "7.2" else RunState.PAUSED
        assert await move.source.query_status() is expected


async def test_a_cancel_of_a_transfer_leaves_the_guest_running_and_ends_the_destination(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.ACTIVE)
        await move.source.migrate_cancel()

        assert await names_until(move.story, "cancelled") == ["cancelling", "cancelled"]
        assert await move.source.query_status() is RunState.RUNNING
        await wait_gone(move.destination)


async def test_a_cancel_before_the_switchover_runs_the_guest_again(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.migrate_cancel()

        names = await names_until(move.story, "cancelled")
        assert names[-3:] == ["cancelling", "RESUME", "cancelled"]
        assert await move.source.query_status() is RunState.RUNNING
        if names[:-3] != ["device"]:  # seldom a real one is quick enough to go on first
            await wait_gone(move.destination)


async def test_a_cancel_while_the_last_answer_is_awaited_leaves_a_loaded_destination(lab: Lab):
    async with a_move(lab) as move:
        await move.start_and_withhold_the_answer()
        await move.source.migrate_cancel()
        await move.wait(S.CANCELLED)

        assert await move.source.query_status() is RunState.RUNNING
        assert await move.destination.query_status() is RunState.PAUSED


async def test_a_cut_while_the_last_answer_is_awaited_runs_the_guest_at_the_source(lab: Lab):
    async with a_move(lab) as move:
        await move.start_and_withhold_the_answer()
        move.wire.cut()

        assert await names_until(move.story, "RESUME") == ["device", "failed", "RESUME"]
        assert await move.source.query_status() is RunState.RUNNING
        assert await move.destination.query_status() is RunState.PAUSED


async def test_a_cancel_without_a_migration_changes_nothing(lab: Lab):
    async with lab.qemu() as qemu:
        await qemu.migrate_cancel()

        assert (await qemu.query_migrate()).status is S.NONE
        assert await qemu.query_status() is RunState.RUNNING


async def test_a_cancel_after_the_end_changes_nothing(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.migrate_continue()
        await move.wait(S.COMPLETED)
        await move.source.migrate_cancel()

        assert (await move.source.query_migrate()).status is S.COMPLETED
        assert (await move.destination.query_migrate()).status is S.COMPLETED


async def test_a_source_that_completed_runs_again_when_told(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.migrate_continue()
        await move.wait(S.COMPLETED)
        lab.kill(move.destination)
        await rests_in(move.source, RunState.POSTMIGRATE)
        await move.source.cont()

        assert await move.source.query_status() is RunState.RUNNING
        assert (await move.source.query_migrate()).status is S.COMPLETED


async def test_a_broken_transfer_leaves_the_guest_running_and_ends_the_destination(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.ACTIVE)
        move.wire.cut()
        await move.wait(S.FAILED)

        assert await move.source.query_status() is RunState.RUNNING
        assert (await move.source.query_migrate()).status is S.FAILED
        await wait_gone(move.destination)


async def test_a_killed_destination_fails_the_transfer(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.ACTIVE)
        lab.kill(move.destination)
        await move.wait(S.FAILED)

        assert await move.source.query_status() is RunState.RUNNING


async def test_a_killed_source_ends_a_destination_that_has_not_loaded(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        lab.kill(move.source)

        await wait_gone(move.destination)


async def test_a_source_in_pre_switchover_does_not_notice_that_the_destination_died(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        lab.kill(move.destination)
        await wait_gone(move.destination)

        assert (await move.source.query_migrate()).status is S.PRE_SWITCHOVER
        assert await move.source.query_status() is RunState.FINISH_MIGRATE
        await move.source.migrate_cancel()
        await move.wait(S.CANCELLED)
        assert await move.source.query_status() is RunState.RUNNING


async def test_a_switchover_to_a_dead_destination_fails_and_the_guest_runs(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        lab.kill(move.destination)
        await wait_gone(move.destination)
        await move.source.migrate_continue()

        assert await names_until(move.story, "RESUME") == ["device", "failed", "RESUME"]
        assert await move.source.query_status() is RunState.RUNNING


async def test_a_yank_fails_a_transfer(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.ACTIVE)
        await move.source.yank_migration()
        await move.wait(S.FAILED)

        assert await move.source.query_status() is RunState.RUNNING


async def test_nobody_listening_fails_the_move_and_a_second_try_works(lab: Lab):
    async with a_move(lab) as move:
        await move.source.migrate(f"tcp:{LOOPBACK}:{closed_port()}")
        assert await names_until(move.story, "failed") == ["setup", "failed"]
        report = await move.source.query_migrate()
        await move.start(reach=S.PRE_SWITCHOVER)

        assert report.error_desc is not None
        assert "Connection refused" in report.error_desc
        assert await move.source.query_status() is RunState.FINISH_MIGRATE


async def test_a_connection_that_hangs_stays_in_setup_until_cancelled(lab: Lab):
    async with lab.black_hole() as uri, lab.qemu() as qemu:
        await qemu.migrate(uri)
        assert (await qemu.query_migrate()).status is S.SETUP
        assert await qemu.has_migration_channels()
        await qemu.migrate_cancel()

        expected = S.CANCELLING if lab.version == "7.2" else S.CANCELLED
        await reached(qemu, expected)
        assert await qemu.has_migration_channels()  # until connect() returns
        assert await qemu.query_status() is RunState.RUNNING


async def test_a_destination_on_tcp_tells_its_port(lab: Lab):
    async with lab.qemu(is_incoming=True) as destination:
        await destination.migrate_incoming(f"tcp:{LOOPBACK}:0")

        port = (await destination.query_migrate()).port
        assert port is not None
        assert 0 < port < 65536


async def test_a_destination_listens_once(lab: Lab):
    async with a_move(lab) as move:
        with pytest.raises(QemuRefused, match="already been started"):
            await move.destination.migrate_incoming(lab.unix_uri())


async def test_what_may_not_happen_now_is_refused(lab: Lab):
    async with a_move(lab) as move:
        with pytest.raises(QemuRefused):
            await move.source.migrate_continue()
        with pytest.raises(QemuRefused):
            await move.source.migrate_incoming(lab.unix_uri())
        await move.start(reach=S.PRE_SWITCHOVER)
        with pytest.raises(QemuRefused, match="in progress"):
            await move.source.migrate(move.uri)
        with pytest.raises(QemuRefused, match="in progress"):
            await move.source.set_capabilities({"events": False})
        with pytest.raises(QemuRefused, match="not finalized"):
            await move.source.cont()
        await move.source.stop()  # accepted, and lost
        await move.source.migrate_continue()
        await rests_in(move.source, RunState.POSTMIGRATE)
        with pytest.raises(QemuRefused, match="paused due to previous migration"):
            await move.source.migrate(move.uri)


async def test_a_stop_in_pre_switchover_is_lost(lab: Lab):
    async with a_move(lab) as move:
        await move.start(reach=S.PRE_SWITCHOVER)
        await move.source.stop()
        await move.source.migrate_cancel()
        await move.wait(S.CANCELLED)

        assert await move.source.query_status() is RunState.RUNNING


async def test_a_cont_before_the_load_arms_a_start_and_a_stop_disarms_it(lab: Lab):
    for orders, expected in ((["cont"], RunState.RUNNING), (["cont", "stop"], RunState.PAUSED)):
        async with a_move(lab) as move:
            for order in orders:
                await move.destination.monitor.execute(order)
            await move.start(reach=S.PRE_SWITCHOVER)
            await move.source.migrate_continue()
            await move.wait(S.COMPLETED)

            assert await move.destination.query_status() is expected


async def test_one_unknown_capability_leaves_all_as_they_were(lab: Lab):
    async with lab.qemu() as qemu:
        before = await qemu.query_capabilities()

        with pytest.raises(QemuRefused, match="x-none"):
            await qemu.set_capabilities({"events": True, "x-none": True})
        assert await qemu.query_capabilities() == before


async def test_only_a_new_qemu_can_be_told_to_stay_after_a_failed_load(lab: Lab):
    if lab.version == "7.2":
        with pytest.raises(QemuRefused, match="exit-on-error"):
            async with a_move(lab, exit_on_error=False):
                pass
        return
    async with a_move(lab, exit_on_error=False) as move:
        await move.start(reach=S.ACTIVE)
        move.wire.cut()

        report = await reached(move.destination, S.FAILED)
        assert report.error_desc is not None
        assert await move.destination.query_status() is RunState.INMIGRATE


async def test_a_key_is_made_and_removed(lab: Lab, tmp_path: Path):
    (tmp_path / "keys.psk").write_text("m:" + "00" * 32 + "\n", encoding="ascii")
    async with lab.qemu() as qemu:
        await qemu.add_psk("key", tmp_path, Endpoint.CLIENT, "m", "NORMAL:-CIPHER-ALL:+AES-128-GCM")
        await qemu.object_del("key")

        with pytest.raises(QemuRefused, match="not found"):
            await qemu.object_del("key")
