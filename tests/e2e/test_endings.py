"""A guest that ends, stops or reboots by itself while it moves is told as that, wherever it is then; see docs/endings.md."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from common.errors import WrongState
from common.rpc.status import calls_to
from tests.e2e.guest import Plan
from tests.e2e.lab import PAUSED, Lab
from tests.e2e.letters import PANIC, PC, POWER_OFF, RESET, WRITE, empty, fill, obedient, on_small_disk, tell
from tests.e2e.move import Move, State, Where, Whole, wishes
from tests.e2e.steps import steps
from tests.e2e.user import resume
from tests.e2e.waiting import until, until_equal

SLOW_MIB_S = 2.0
# Writes faster than the moves here may send, so that there is a pass after each pass.
BUSY = obedient(Plan(dirty_mib_s=8.0))
DESTROYED_AT_REBOOT = "<on_reboot>destroy</on_reboot>"
KEPT_AT_PANIC = "<on_crash>preserve</on_crash>"
LATER_PASS = 3


async def start_slowly(lab: Lab, *, pass_count: int = 1) -> Move:
    """Start a move that does not end before it is let, and wait until it is in this pass."""
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, max_downtime_s=0.001))
    await move.wait_transferring()
    if pass_count > 1:
        await move.update(bandwidth_mib_s=6)
        await move.wait_source(lambda half: half.progress.pass_count >= pass_count, f"pass {pass_count}")
    return move


async def let_end(move: Move) -> Whole:
    """Take the bounds off, and wait for the outcome."""
    with suppress(WrongState), calls_to("the coordinator"):  # a guest that boots writes little, so it may be over already
        await move.update(bandwidth_mib_s=0, max_downtime_s=1)
    return await move.outcome()


def assert_over(outcome: Whole, reason: str, where: Where.ValueType, *words: str) -> None:
    """Fail unless the move failed for this reason, with these words, and the guest is there."""
    assert (outcome.state, outcome.error_reason) == (State.STATE_FAILED, reason), outcome.error
    assert outcome.guest_location == where
    for word in words:
        assert word in outcome.error


async def assert_ended(lab: Lab, state: str) -> None:
    """Fail unless the guest runs nowhere, is defined at the source alone, and can be started and moved at once."""
    await until(lambda: not lab.qemus(), "no QEMU left")
    await lab.wait_empty("host-b")
    assert await lab.vms("host-a") == {"web": state}
    await until_equal(lambda: job_of(lab), "")
    await lab.start_vm("host-a", "web")
    again = await (await lab.start_move()).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error


async def job_of(lab: Lab) -> str:
    return (await lab.vm("host-a", "web")).job


ENDINGS = {
    "powers off": (POWER_OFF, "", "GUEST_SHUT_DOWN", "the guest powered itself off", "STOPPED"),
    "reboots and is not to": (RESET, DESTROYED_AT_REBOOT, "GUEST_SHUT_DOWN", "the guest rebooted", "STOPPED"),
    "panics": (PANIC, "", "GUEST_PANICKED", "the guest panicked", "CRASHED"),
}


@pytest.mark.parametrize("pass_count", [1, LATER_PASS], ids=["first pass", "later pass"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_guest_that_ends_while_memory_is_sent_ends_the_move_as_that(ending, pass_count, lab: Lab):
    letter, beside, reason, words, state = ENDINGS[ending]
    await lab.start_guest(plan=obedient(BUSY, beside=beside))
    move = await start_slowly(lab, pass_count=pass_count)

    await tell(lab, "host-a", letter)

    assert_over(await move.outcome(), reason, Where.GUEST_LOCATION_NOWHERE, words, "host-a")
    await assert_ended(lab, state)


async def test_a_guest_that_ends_between_begin_and_perform_leaves_nothing_behind(lab: Lab):
    await lab.start_guest(plan=BUSY)
    async with steps(lab) as hand:
        await hand.begin_and_prepare()

        await tell(lab, "host-a", POWER_OFF)
        half = await Move(hand.migration_id, lab.coordinator, hand.source, hand.destination).wait_source_phase("Lost")

    assert half.error_reason == "GUEST_SHUT_DOWN"
    await assert_ended(lab, "STOPPED")


@pytest.mark.parametrize("pass_count", [1, LATER_PASS], ids=["first pass", "later pass"])
async def test_a_guest_that_reboots_while_memory_is_sent_is_moved_and_that_is_told(pass_count, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await start_slowly(lab, pass_count=pass_count)

    await tell(lab, "host-a", RESET)
    await move.wait_source(lambda half: half.warnings, "a warning")
    await until(lambda: guest.console.counter < LATER_PASS, "the guest's new life")
    outcome = await let_end(move)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert "rebooted" in outcome.warnings[0]
    since = len(guest.console.ticks)
    await guest.console.wait_sweeps(2)
    ticks = guest.console.ticks[since:]
    assert [tick.counter for tick in ticks] == list(range(ticks[0].counter, ticks[0].counter + len(ticks)))
    assert not ticks[-1].bad_count
    await lab.assert_only_on("host-b", guest)


async def test_a_guest_that_panics_and_is_to_be_looked_at_stays_where_it_is(lab: Lab):
    guest = await lab.start_guest(plan=obedient(BUSY, beside=KEPT_AT_PANIC))
    move = await start_slowly(lab)

    await tell(lab, "host-a", PANIC)

    outcome = await move.outcome()
    assert_over(outcome, "GUEST_PANICKED", Where.GUEST_LOCATION_SOURCE, "the guest panicked", "host-a", "ferry vm reset web")
    assert "loaded" not in outcome.error
    await lab.assert_only_on("host-a", guest, PAUSED)
    guest.assert_whole()


@pytest.mark.parametrize("pass_count", [1, LATER_PASS], ids=["first pass", "later pass"])
async def test_a_guest_that_cannot_write_to_its_disk_stays_where_it_is_and_is_moved_once_it_can(pass_count, lab: Lab):
    if os.geteuid() != 0:
        pytest.skip("a full disk needs root")
    guest_plan = obedient(BUSY, machine=PC, bus="ide")
    with on_small_disk(lab, guest_plan) as directory:
        guest = await lab.start_guest(plan=guest_plan)
        move = await start_slowly(lab, pass_count=pass_count)
        fill(directory)

        await tell(lab, "host-a", WRITE)

        outcome = await move.outcome()
        said = ("I/O error (write on ", "No space left on device", "stands still on host-a", "ferry vm resume web")
        assert_over(outcome, "GUEST_IO_ERROR", Where.GUEST_LOCATION_SOURCE, *said)
        await lab.assert_only_on("host-a", guest, PAUSED)
        empty(directory)
        await resume(lab, "host-a")
        await guest.console.wait_ticks(3)
        again = await (await lab.start_move()).outcome()
        assert again.state == State.STATE_SUCCEEDED, again.error
        await lab.assert_only_on("host-b", guest)
        guest.assert_whole()
        await lab.tidy()
