"""Ferry's own servers are killed while disks move, or the move is cancelled and begun anew: it ends well, and nothing is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.disk_guest import Disk, DiskPlan, leave, start_disk_guest
from tests.e2e.disk_moves import copied_to, places
from tests.e2e.disk_stages import Stage, cold_disk, start_disk_move
from tests.e2e.disk_stages import copied_to as copied_to_path
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.qemu_state import assert_state, state_of
from tests.e2e.test_disks import assert_arrived
from tests.guests.disk import Area

MIB = 1 << 20
ATTEMPT_COUNT = 12
SMALL = Area(slot_count=32, write_mib_s=0.2, verify_mib_s=0.2)


@pytest.mark.parametrize("way", ["psk", pytest.param("tunnel", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("server", ["agent-a", "agent-b", "coordinator"])
@pytest.mark.parametrize("stage", [Stage.COPYING, pytest.param(Stage.SENDING, marks=pytest.mark.matrix)])
async def test_a_server_that_is_killed_while_disks_are_copied_goes_on_when_it_is_back(stage, server, way, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, stage, way)
    await moving.reach()

    await lab_watched.kill(server)
    await lab_watched.restart(server)
    await lab_watched.wait_reachable()
    await lab_watched.update_until_accepted(moving.move, bandwidth_mib_s=0, disk_bandwidth_mib_s=0)

    outcome = await moving.move.outcome(timeout_s=90)
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await moving.assert_arrived()


async def test_an_agent_that_is_killed_when_the_guest_was_stopped_settles_its_disks_when_it_is_back(lab_watched: Lab):
    moving = await start_disk_move(lab_watched, Stage.SETTLING)
    async with moving.stopped_for_settling():
        await lab_watched.kill("agent-a")
    await lab_watched.restart("agent-a")
    await lab_watched.wait_reachable()

    outcome = await moving.move.outcome(timeout_s=60)

    if outcome.state == State.STATE_SUCCEEDED:
        await moving.assert_arrived()
    else:  # it stood still for too long
        await moving.assert_kept(State.STATE_FAILED, outcome.error_reason)
        await moving.assert_moves_now()


async def test_an_agent_that_is_killed_before_all_copies_have_begun_leaves_nothing_and_moves_them_again(lab_watched: Lab):
    lab = lab_watched
    guest = await start_disk_guest(lab, DiskPlan(disks=tuple(Disk(size_mib=8, area=SMALL) for _ in range(10))))
    before = await state_of(lab)
    move = await lab.start_move(options=wishes(disks=copied_to(guest)))
    await move.wait_source_phase("Mirroring")

    await lab.kill("agent-a")
    await lab.restart("agent-a")
    await lab.wait_reachable()

    outcome = await move.outcome(timeout_s=60)
    if outcome.state != State.STATE_SUCCEEDED:  # else they had all begun
        assert outcome.error_reason == "AGENT_RESTARTED", outcome.error
        await lab.assert_only_on("host-a", guest)
        await assert_state(lab, before)
        assert not [path for path in places(guest).values() if path.exists()]
        outcome = await (await lab.start_move(options=wishes(disks=copied_to(guest)))).outcome()
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await assert_arrived(lab, guest)


@pytest.mark.parametrize("source", [pytest.param("host-b", id="10.0"), pytest.param("host-a", id="7.2", marks=pytest.mark.matrix)])
async def test_a_move_is_cancelled_and_begun_anew_at_once_again_and_again_under_a_guest_that_writes(source, lab_watched: Lab):
    lab, destination = lab_watched, "host-b" if source == "host-a" else "host-a"
    disk = replace(cold_disk(lab.directory), area=Area(slot_count=1024, write_mib_s=24.0, verify_mib_s=0.1, flush_ms=0))
    guest = await start_disk_guest(lab, DiskPlan(disks=(disk,), period_ms=5.0), host=source)
    before = await state_of(lab, source)
    copy = lab.directory / "there.qcow2"

    for _ in range(ATTEMPT_COUNT):
        options = wishes(disks=copied_to_path(copy, bandwidth_mib_s=1.0))
        move = await lab.start_move(source=source, to=destination, options=options)
        await move.wait_source(lambda half: half.progress.disks and half.progress.disks[0].copied_bytes, "a disk on its way")
        await move.cancel()
        outcome = await move.outcome()
        assert outcome.state == State.STATE_CANCELLED, outcome.error

    await lab.assert_only_on(source, guest)
    await assert_state(lab, before, source)
    assert not copy.exists()
    await guest.console.wait_written(20, disk=1)
    await leave(lab, guest, source)
    guest.assert_disk("vdb", is_final=True)
