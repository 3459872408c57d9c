"""What QEMU refuses, and what becomes of a migration when something breaks, on fakes and on real QEMUs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.qemu.errors import QemuRefused
from agent.qemu.machine import Endpoint
from agent.qemu.status import MigrationStatus as S
from agent.qemu.status import RunState
from tests.contract.move import POLL_S, REACH_TIMEOUT_S, a_move, names_until, reached, rests_in, wait_gone
from tests.fakes.network import LOOPBACK, closed_port

if TYPE_CHECKING:
    from tests.contract.lab import Lab


def failure_begins(lab: Lab) -> str:
    """Return the status that is told of a failure before the guest runs again."""
    return "failed" if lab.version in {"7.2", "10.0"} else "failing"


async def test_a_cut_while_the_last_answer_is_awaited_runs_the_guest_at_the_source(lab: Lab):
    async with a_move(lab) as move:
        await move.start_and_withhold_the_answer()
        move.wire.cut()

        assert await names_until(move.story, "RESUME") == ["device", failure_begins(lab), "RESUME"]
        assert await move.source.query_status() is RunState.RUNNING
        assert await move.destination.query_status() is RunState.PAUSED


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

        assert await names_until(move.story, "RESUME") == ["device", failure_begins(lab), "RESUME"]
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
        failing = [name for name in [failure_begins(lab)] if name != "failed"]
        assert await names_until(move.story, "failed") == ["setup", *failing, "failed"]
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

        expected = S.CANCELLED if lab.version == "10.0" else S.CANCELLING
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

        await reached(move.destination, S.FAILED)
        async with asyncio.timeout(REACH_TIMEOUT_S):
            while (await move.destination.query_migrate()).error_desc is None:  # noqa: ASYNC110  (11.1 tells it a moment later)
                await asyncio.sleep(POLL_S)
        assert await move.destination.query_status() is RunState.INMIGRATE


async def test_a_key_is_made_and_removed(lab: Lab, tmp_path: Path):
    (tmp_path / "keys.psk").write_text("m:" + "00" * 32 + "\n", encoding="ascii")
    async with lab.qemu() as qemu:
        await qemu.add_psk("key", tmp_path, Endpoint.CLIENT, "m", "NORMAL:-CIPHER-ALL:+AES-128-GCM")
        await qemu.object_del("key")

        with pytest.raises(QemuRefused, match="not found"):
            await qemu.object_del("key")
