"""A person with a monitor of their own does things to a guest that moves: what is told is what was done, and to which guest."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from ferry.agent.v1 import vm_pb2
from tests.e2e.binaries import require
from tests.e2e.by_hand import MEMORY, ByHand, by_hand
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import PAUSED, Lab, frozen
from tests.e2e.letters import POWER_OFF, obedient, tell
from tests.e2e.move import Move, State, Where, wishes
from tests.e2e.steps import steps
from tests.e2e.user import pause, resume
from tests.e2e.waiting import until, until_equal

SLOW_MIB_S = 0.5
MONITORS = ("-qmp", "unix:q.sock,server=on,wait=off", "-qmp", "unix:own.sock,server=on,wait=off")
COMMON = ("-M", "pc-q35-7.2", "-m", MEMORY, "-accel", "tcg", "-display", "none", "-nodefaults", "-serial", "file:serial.log")
DISK = ("-drive", "file=tick.img,if=virtio,format=raw")
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)


@asynccontextmanager
async def owned(lab: Lab, *more: str, version: str = "7.2") -> AsyncIterator[tuple[Guest, ByHand]]:
    """Adopt a QEMU with two monitors, the second of which stays the person's."""
    async with by_hand(lab, require(version), *COMMON, *MONITORS, *DISK, *more) as hand:
        adopted = (await hand.adopt("host-a")).vm
        yield await hand.guest(adopted.uuid), replace(hand, socket_name="own.sock")


async def start_slowly(lab: Lab) -> Move:
    """Start a move that does not end before it is let."""
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, max_downtime_s=0.001))
    await move.wait_transferring()
    return move


async def test_a_guest_that_is_paused_while_memory_is_sent_arrives_paused(lab: Lab):
    async with owned(lab) as (guest, person):
        move = await start_slowly(lab)

        await person.ask(("stop", {}))
        await move.wait_source(lambda half: half.warnings, "a warning")
        await guest.wait_silent(2.5)
        await move.update(bandwidth_mib_s=0)
        outcome = await move.outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert "paused during the migration, not by Ferry" in outcome.warnings[0]
        await lab.assert_only_on("host-b", guest, PAUSED)
        await resume(lab, "host-b")
        await guest.console.wait_sweeps(1)
        guest.assert_whole()


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("is_resumed", [False, True], ids=["stays paused", "is resumed"])
async def test_a_paused_guest_whose_move_is_cancelled_is_as_its_user_left_it(is_resumed, version, lab: Lab):
    async with owned(lab, version=version) as (guest, person):
        move = await start_slowly(lab)
        await person.ask(("stop", {}))
        await move.wait_source(lambda half: half.warnings, "a warning")
        if is_resumed:
            await person.ask(("cont", {}))
            await move.wait_source(lambda half: len(half.warnings) > 1, "another warning")

        await move.cancel()
        outcome = await move.outcome()

        assert outcome.state == State.STATE_CANCELLED, outcome.error
        assert await lab.vms("host-a") == {"web": "RUNNING" if is_resumed else PAUSED}
        if not is_resumed:
            await resume(lab, "host-a")
        await guest.console.wait_ticks(3)
        guest.assert_whole()


ENDS = {
    "quit": ("quit", "told to quit"),
    "signal": ("", "ended by a signal"),
    "power button": ("system_powerdown", "powered itself"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_qemu_that_somebody_else_ends_while_memory_is_sent_is_told_as_that(end, lab: Lab):
    command, words = ENDS[end]
    async with owned(lab) as (guest, person):
        move = await start_slowly(lab)

        if command:
            await person.ask((command, {}))
        else:
            os.kill(await lab.qemu_pid("host-a"), signal.SIGTERM)
        outcome = await move.outcome()

        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_NOWHERE)
        assert outcome.error_reason == ("GUEST_SHUT_DOWN" if end == "power button" else "QEMU_ENDED")
        assert words in outcome.error
        assert "host-a" in outcome.error
        await until(lambda: not lab.qemus(), "no QEMU left")
        for host in ("host-a", "host-b"):
            await lab.wait_empty(host)
        guest.assert_whole()


async def test_a_guest_that_powers_off_and_keeps_its_qemu_stays_where_it_is(lab: Lab):
    async with owned(lab, "-no-shutdown") as (_guest, person):
        move = await start_slowly(lab)

        await person.ask(("system_powerdown", {}))
        outcome = await move.outcome()

        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
        assert outcome.error_reason == "GUEST_SHUT_DOWN"
        assert "stands still on host-a" in outcome.error
        await lab.wait_empty("host-b")
        request = vm_pb2.StopVmRequest(request_id="stop", vm="web", force=True)
        await lab.agents["host-a"].StopVm(request)


@pytest.mark.parametrize("host", ["host-a", "host-b"], ids=["7.2", "10.0"])
async def test_a_paused_guest_whose_move_is_cancelled_at_the_switch_over_can_be_resumed(host, lab: Lab):
    """QEMU 7.2 leaves it in `postmigrate`, from where no user could resume it."""
    other = "host-b" if host == "host-a" else "host-a"
    guest = await lab.start_guest(host, plan=TINY)
    await pause(lab, host)
    move = await lab.start_move(to=other, source=host, options=wishes(bandwidth_mib_s=0.2, max_downtime_s=5.0))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid(other)):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        await move.cancel()
        outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    await lab.assert_only_on(host, guest, PAUSED)
    await resume(lab, host)
    await guest.console.wait_ticks(3)
    again = await (await lab.start_move(to=other, source=host)).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    await lab.assert_only_on(other, guest)
    guest.assert_whole()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended by a signal"])
async def test_a_source_that_ends_while_the_guest_changes_hands_leaves_it_to_the_destination_or_to_nobody(end, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=0.2, max_downtime_s=5.0))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        os.kill(await lab.qemu_pid("host-a"), end)
        await until(lambda: len(lab.qemus()) == 1, "the end of the source's QEMU")
    outcome = await move.outcome()

    if outcome.state == State.STATE_SUCCEEDED:
        await lab.assert_only_on("host-b", guest)
    else:
        assert outcome.guest_location == Where.GUEST_LOCATION_NOWHERE
        assert outcome.error_reason == "QEMU_ENDED"
        assert "on the source" in outcome.error
        await until(lambda: not lab.qemus(), "no QEMU left")
        await lab.wait_empty("host-b")
    guest.assert_whole()


async def test_a_guest_that_powers_off_right_after_it_came_is_kept_where_it_came_to(lab: Lab):
    await lab.start_guest(plan=obedient(TINY))
    async with steps(lab) as hand:
        await hand.begin_and_prepare()
        await hand.perform()

        await tell(lab, "host-b", POWER_OFF)
        await until(lambda: len(lab.qemus()) == 1, "the end of the destination's QEMU")
        await until_equal(lambda: lab.vms("host-b"), {"web": "STOPPED"})
        kept, retired = await hand.finish_and_confirm()
        hand.prepared.ClearField("agent_address")
        hand.begun.ClearField("definition")

    assert kept.phase == "Finished"
    assert "the guest powered itself off" in kept.warnings[-1]
    assert retired.phase == "Retired"
    await lab.wait_empty("host-a")
    assert await lab.vms("host-b") == {"web": "STOPPED"}
    assert not lab.qemus()
