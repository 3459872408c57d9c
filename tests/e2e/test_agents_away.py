"""An agent is killed or stopped and stays away: its guest stands still for at most 2 s more than allowed and goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ferry.common.v1 import disks_pb2 as disks_pb
from tests.e2e.disk_guest import Disk, DiskPlan, start_disk_guest
from tests.e2e.guest import Guest
from tests.e2e.held import TINY, sent, start_held
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, State, Where, Whole, post_copy, wishes
from tests.e2e.tables import cases, one_each
from tests.e2e.waiting import until
from tests.guests.disk import Area

ALLOWED_S = 0.3
MARGIN_S = 2.0
# Of what a move held by hand needs.
HELD_ALLOWED_S = 1.0
LONG_ALLOWED_S = 3.0
SLOW_MIB_S = 1.0
FAULTS = ("killed", "stopped")
WAYS_TRIED = ("psk", "tunnel", "plain")


@asynccontextmanager
async def away(lab: Lab, agent: str, fault: str) -> AsyncIterator[None]:
    """Have an agent killed or stopped inside, and there again afterwards."""
    if fault == "stopped":
        with frozen(lab.fleet.pid(agent)):
            yield
        return
    await lab.kill(agent)
    try:
        yield
    finally:
        await lab.restart(agent)


async def assert_goes_on(guest: Guest, pid: int) -> None:
    """Wait until the guest was stopped, and went on."""
    await guest.wait_stopped(pid, 0.1)
    await guest.console.wait_ticks(10)


async def assert_kept(lab: Lab, guest: Guest, outcome: Whole, *reasons: str) -> None:
    """Fail unless the move has failed for one of these reasons, with the guest as it was, and can be made again."""
    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    assert outcome.error_reason in reasons, outcome.error
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()
    await lab.wait_reachable()
    again = await (await lab.start_move()).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    guest.assert_whole()


@cases(("fault", "way"), (FAULTS, WAYS_TRIED), [("killed", "psk"), ("stopped", "tunnel")])
async def test_a_source_agent_that_is_away_at_the_switch_over_keeps_its_guest(fault, way, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    async with away(lab, "agent-a", fault):
        await assert_goes_on(guest, pid)
    outcome = await move.outcome()

    guest.assert_no_gap(ALLOWED_S + MARGIN_S, since_s)
    await assert_kept(lab, guest, outcome, "AGENT_AWAY")


@pytest.mark.matrix
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_source_agent_that_is_away_when_a_guest_is_to_go_in_post_copy_keeps_its_guest(fault, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, post_copy=post_copy()))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    async with away(lab, "agent-a", fault):
        await assert_goes_on(guest, pid)
    outcome = await move.outcome()

    guest.assert_no_gap(ALLOWED_S + MARGIN_S, since_s)
    await assert_kept(lab, guest, outcome, "AGENT_AWAY")


@cases(("fault", "source"), (FAULTS, ("host-a", "host-b")), [("killed", "host-a")])
async def test_a_guest_whose_source_agent_went_away_after_the_decision_goes_on_at_the_destination(fault, source, lab: Lab):
    """QEMU completes by itself, and the guardian says Resume."""
    destination = "host-b" if source == "host-a" else "host-a"
    agent = source.replace("host", "agent")
    guest = await lab.start_guest(source, plan=TINY)
    pid = await lab.qemu_pid(source)
    move = await lab.start_move(to=destination, options=wishes(bandwidth_mib_s=SLOW_MIB_S, max_downtime_s=HELD_ALLOWED_S))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    with frozen(lab.fleet.pid(agent)) as let_source_go_on:
        await guest.wait_stopped(pid, 0.1)
        with frozen(await lab.qemu_pid(destination)) as let_qemu_go_on:
            let_source_go_on()
            await move.wait_source_phase("Switching")
            async with away(lab, agent, fault):
                let_qemu_go_on()
                await guest.console.wait_ticks(10)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    guest.assert_no_gap(HELD_ALLOWED_S + MARGIN_S, since_s)
    await lab.assert_only_on(destination, guest)
    guest.assert_whole()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_guest_that_was_sent_to_a_host_whose_agent_went_away_goes_on_there(fault, lab: Lab):
    """The guardian there asks the source for it."""
    guest, move = await start_held(lab)

    async with sent(lab, guest, move):
        if fault == "killed":
            await lab.kill("agent-b")
        await guest.console.wait_ticks(10)
    if fault == "killed":
        await lab.restart("agent-b")
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_guest_that_its_guardian_let_go_on_and_that_ended_before_its_agent_was_back_is_told_as_lost(lab: Lab):
    """That agent has no word of it in its own record, and must not say that the guest never ran."""
    guest, move = await start_held(lab)
    pid = await lab.qemu_pid("host-b")

    async with sent(lab, guest, move):
        await guest.console.wait_ticks(10)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in lab.qemus(), "the end of the destination's QEMU")
    half = await move.wait_source(lambda half: half.is_final, "an end")

    assert half.phase == "Lost", half.error
    guest.assert_whole()


@cases(("fault", "way"), (FAULTS, WAYS_TRIED), one_each(FAULTS, ("psk", "tunnel")))
async def test_a_guest_runs_on_at_the_source_until_the_agent_that_is_to_take_it_is_back(fault, way, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    async with away(lab, "agent-b", fault):
        await guest.console.wait_ticks(300)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    guest.assert_no_gap(ALLOWED_S + MARGIN_S, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_guest_is_not_given_to_a_host_whose_agent_is_away_at_the_switch_over(fault, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, max_downtime_s=LONG_ALLOWED_S))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    with frozen(lab.fleet.pid("agent-a")) as let_source_go_on:
        await guest.wait_stopped(pid, 0.1)
        async with away(lab, "agent-b", fault):
            let_source_go_on()
            await guest.console.wait_ticks(10)
            half = await move.at_source()
    outcome = await move.outcome()

    assert "host-b" in half.error
    guest.assert_no_gap(LONG_ALLOWED_S + MARGIN_S, since_s)
    await assert_kept(lab, guest, outcome, "PEER_UNREACHABLE" if fault == "killed" else "PEER_SILENT")


@pytest.mark.matrix
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_guest_whose_disks_are_to_be_settled_does_not_wait_for_its_agent_either(fault, lab: Lab):
    area = Area(slot_count=256, write_mib_s=1.0, verify_mib_s=1.0)
    guest = await start_disk_guest(lab, DiskPlan(disks=(Disk(size_mib=16, area=area),)))
    pid = await lab.qemu_pid("host-a")
    paths = {"vdb": str(guest.directory / "copy.qcow2")}
    disks = disks_pb.DiskWishes(which=disks_pb.DiskWishes.WHICH_NAMED, names=["vdb"], destination_paths=paths)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, disks=disks))
    await move.wait_source_phase("Transferring")
    since_s = now_s()

    async with away(lab, "agent-a", fault):
        await assert_goes_on(guest, pid)
    outcome = await move.outcome()

    guest.assert_no_gap(ALLOWED_S + MARGIN_S, since_s)
    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_an_agent_that_is_stopped_for_good_is_ended_and_the_next_takes_its_move_up_again(lab: Lab):
    """Its guardian holds the monitor of QEMU, which serves one client at a time."""
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")
    os.kill(lab.fleet.pid("agent-a"), signal.SIGSTOP)
    await assert_goes_on(guest, pid)

    await lab.kill("agent-a")
    await lab.restart("agent-a")

    await assert_kept(lab, guest, await move.outcome(), "AGENT_AWAY")
