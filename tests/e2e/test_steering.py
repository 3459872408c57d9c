"""Pause, bandwidth and downtime, changed while a move is on its way."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.e2e.guest import MIB, Guest, Plan, domain
from tests.e2e.held import sent, start_held
from tests.e2e.lab import PAUSED, RUNNING, Lab, now_s, refused
from tests.e2e.move import WAYS, Half, Move, State, wishes
from tests.guests.console import Console

SLOW_MIB_S = 2.0
# Writes faster than the move is allowed to send, so that it never converges.
BUSY = Plan(dirty_mib_s=8.0)
PAGES_OF_BUSY = BUSY.megabytes * 256
# Has more to send in each pass than it is watched for.
LARGE = Plan(megabytes=32, dirty_mib_s=32.0, sweeps_per_s=0.5)


async def rate_mib_s(move: Move) -> float:
    """Measure how fast a move sends from now on, by what QEMU counts in a second of its own clock."""

    def elapsed_s(half: Half) -> float:
        return half.progress.elapsed.ToTimedelta().total_seconds()

    # What is known was counted up to half a second ago.
    known = await move.at_source()
    first = await move.wait_source(lambda half: elapsed_s(half) > elapsed_s(known) + 0.5, "newer progress")
    second = await move.wait_source(lambda half: elapsed_s(half) > elapsed_s(first) + 0.9, "a second of progress")
    sent = second.progress.ram_transferred_bytes - first.progress.ram_transferred_bytes
    return sent / (elapsed_s(second) - elapsed_s(first)) / MIB


async def start_paused_guest(lab: Lab) -> Guest:
    """Start a guest whose user holds it before its first instruction."""
    uuid = uuid4()
    await lab.define("host-a", domain(Plan(), lab.directory, uuid=uuid))
    await lab.start_vm("host-a", "web", paused=True)
    return Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory)


@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_guest_paused_on_the_way_stands_still_and_runs_again_at_the_destination(way, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()

    await move.pause()
    await guest.wait_silent(0.5)
    assert (await lab.vms("host-a"))[guest.name] == PAUSED
    assert (await move.at_source()).phase == "Transferring"
    await move.update(bandwidth_mib_s=0)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_guest_that_is_moved_with_pause_stands_still_from_the_beginning(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)

    move = await lab.start_move(options=wishes(pause=True, bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    counter = guest.console.counter
    assert (await lab.vms("host-a"))[guest.name] == PAUSED
    await move.update(bandwidth_mib_s=0)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.progress.normal_page_count < 2 * PAGES_OF_BUSY  # nothing was written while it was sent
    tick = await guest.console.wait_ticks(1)
    assert tick.counter > counter
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize("is_paused_first", [False, True], ids=["on-the-way", "from-the-beginning"])
async def test_a_guest_that_was_paused_for_the_move_is_let_go_on_while_memory_is_sent(is_paused_first, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(pause=is_paused_first, bandwidth_mib_s=0.5))
    await move.wait_transferring()
    if not is_paused_first:
        with refused("NOT_PAUSED", move.id):
            await move.unpause()
        await move.pause()
    await guest.wait_silent(2.0)  # longer than a switch-over might take

    await move.unpause()
    await guest.console.wait_ticks(200)
    half = await move.at_source()
    assert (half.phase, half.options.pause) == ("Transferring", False)
    assert (await lab.vms("host-a"))[guest.name] == RUNNING
    await move.update(bandwidth_mib_s=0)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert not outcome.warnings
    assert outcome.downtime.total.ToTimedelta().total_seconds() < 1.0
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_guest_that_its_user_had_paused_is_not_started_by_continue(lab: Lab):
    await start_paused_guest(lab)
    move = await lab.start_move(options=wishes(pause=True, bandwidth_mib_s=0.1))
    await move.wait_source_phase("Transferring")

    await move.unpause()
    await move.wait_source(lambda half: not half.options.pause, "a wish that is gone")
    assert (await lab.vms("host-a"))["web"] == PAUSED
    await move.cancel()
    await move.outcome()


async def test_a_cancel_lets_a_guest_paused_for_the_move_run_again(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    await move.pause()
    await guest.wait_silent(0.2)

    await move.cancel()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    await guest.console.wait_ticks(5)
    await lab.assert_only_on("host-a", guest, RUNNING)
    guest.assert_whole()


async def test_a_guest_that_its_user_had_paused_stays_paused_at_the_destination(lab: Lab):
    guest = await start_paused_guest(lab)

    outcome = await (await lab.start_move()).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest, PAUSED)
    assert not guest.console.path.exists() or not guest.console.path.read_bytes()


async def test_a_guest_that_its_user_had_paused_stays_paused_after_a_cancel(lab: Lab):
    guest = await start_paused_guest(lab)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=0.1))
    await move.wait_source_phase("Transferring")

    await move.cancel()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    await lab.assert_only_on("host-a", guest, PAUSED)


async def test_pause_and_new_bounds_are_refused_while_the_guest_changes_hands(lab: Lab):
    guest, move = await start_held(lab)

    async with sent(lab, guest, move):
        with refused("TOO_LATE", move.id, "Sent"):
            await move.pause()
        with refused("NOT_PAUSED", move.id):
            await move.unpause()
        with refused("TOO_LATE", move.id, "Sent"):
            await move.update(max_downtime_s=1.0)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize("way", ["psk", "multifd", "tunnel"])
async def test_a_new_bandwidth_changes_the_rate_of_a_running_move(way, lab: Lab):
    guest = await lab.start_guest(plan=LARGE)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=4))
    await move.wait_transferring()

    slow = await rate_mib_s(move)
    await move.update(bandwidth_mib_s=12)
    fast = await rate_mib_s(move)
    await move.update(bandwidth_mib_s=4)
    slow_again = await rate_mib_s(move)

    assert 2 < slow < 6
    assert 7 < fast < 18
    assert 2 < slow_again < 6
    await move.cancel()
    await move.outcome()
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_longer_downtime_ends_a_move_that_does_not_converge(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=4, max_downtime_s=0.001))
    await move.wait_source(lambda half: half.progress.pass_count > 2, "a third pass")

    since_s = now_s()
    await move.update(max_downtime_s=3.0)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    guest.assert_no_gap(3.0 + 2.0, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_bounds_out_of_range_are_refused_and_change_nothing(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")

    with refused("DOWNTIME_OUT_OF_RANGE", "2001"):
        await move.update(max_downtime_s=2001)
    with refused("BANDWIDTH_OUT_OF_RANGE", "-1048576"):
        await move.update(bandwidth_mib_s=-1)

    assert (await move.at_source()).options.bandwidth_bytes_per_second == SLOW_MIB_S * MIB
    await move.cancel()
    await move.outcome()
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()
