"""The QEMU of one side is killed while a guest moves: what is told is where the guest is, and that may be nowhere."""

from __future__ import annotations

import os
import signal

import pytest

from ferry.agent.v1 import vm_pb2
from tests.e2e.guest import Plan
from tests.e2e.held import sent, start_held
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, State, Where, wishes
from tests.e2e.waiting import until

SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)


@pytest.mark.parametrize("way", WAYS)
async def test_a_destination_killed_while_memory_is_sent_leaves_the_guest_running(way, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    os.kill(await lab.qemu_pid("host-b"), signal.SIGKILL)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert "QEMU here ended" in outcome.error or "host-b" in outcome.error, outcome.error
    guest.assert_no_gap(1.0, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_destination_killed_while_the_guest_changes_hands_gives_it_back(way, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=0.2, max_downtime_s=20.0))
    await move.wait_source_phase("Transferring")
    process = await lab.qemu_pid("host-b")

    with frozen(process):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        since_s = now_s()
        os.kill(process, signal.SIGKILL)
        outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    await guest.console.wait_ticks(5)
    guest.assert_no_gap(2.3, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_destination_killed_between_completion_and_resume_gives_the_guest_back(lab: Lab):
    """The destination's agent proves that the guest never ran there, so the source may take it back."""
    guest, move = await start_held(lab)
    process = await lab.qemu_pid("host-b")

    async with sent(lab, guest, move):
        os.kill(process, signal.SIGKILL)
        await until(lambda: process not in lab.qemus(), "the end of the destination's QEMU")
    outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert "never ran" in outcome.error
    await guest.console.wait_ticks(5)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_guest_that_ran_at_the_destination_and_was_killed_there_has_ended_there_and_starts_there(lab: Lab):
    """What the source holds is older than the guest's disks: it is never run again."""
    guest = await lab.start_guest()
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")

    with frozen(lab.fleet.pid("coordinator")):
        await move.hasten()
        await move.wait_source_phase("HandedOver")
        os.kill(await lab.qemu_pid("host-b"), signal.SIGKILL)
        await move.wait_source_phase("Lost")
        await until(lambda: not lab.qemus(), "no QEMU left")
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_ENDED_AT_DESTINATION)
    assert outcome.error_reason == "QEMU_ENDED"
    assert "host-b" in outcome.error
    assert await lab.vms("host-a") == {}
    assert await lab.vms("host-b") == {guest.name: "STOPPED"}
    await lab.agents["host-b"].StartVm(vm_pb2.StartVmRequest(vm=guest.name))


async def test_a_source_killed_while_memory_is_sent_ends_the_guest_and_the_move_says_so(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()

    os.kill(await lab.qemu_pid("host-a"), signal.SIGKILL)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_NOWHERE
    assert outcome.error_reason == "QEMU_ENDED"
    assert "source" in outcome.error
    await lab.wait_empty("host-b")
    await until(lambda: not lab.qemus(), "no QEMU left")
    assert await lab.vms("host-a") == {guest.name: "CRASHED"}
    assert (await lab.vm("host-a", guest.name)).job == ""
    guest.assert_whole()


async def test_a_source_killed_between_completion_and_resume_does_not_take_the_guest_along(lab: Lab):
    guest, move = await start_held(lab)

    async with sent(lab, guest, move):
        os.kill(await lab.qemu_pid("host-a"), signal.SIGKILL)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
