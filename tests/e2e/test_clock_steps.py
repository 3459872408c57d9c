"""The wall clock of the hosts is set while a guest moves: no deadline and no span follows it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.lab.fleet import Fleet
from ferry.common.v1.budget_pb2 import POLICY_FAST
from tests.e2e.guest import Plan
from tests.e2e.held import PATIENT_S, TINY, sent
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import State, seconds, wishes
from tests.e2e.stepped_clock import SteppedClock, stepped_fleet
from tests.e2e.tables import cases

STEPS_S = {"back-600s": -600.0, "ahead-600s": 600.0, "back-2-days": -172_800.0}
PHASES = ("Transferring", "Switching", "Sent")
ALLOWED_S = 1.0
MARGIN_S = 2.0
SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=4.0)
LONGEST_S = 20.0


@pytest.fixture(scope="module")
def _stepped() -> Iterator[tuple[Fleet, SteppedClock]]:
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    try:
        with stepped_fleet(directory) as fleet:
            yield fleet
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def clock(_stepped: tuple[Fleet, SteppedClock]) -> Iterator[SteppedClock]:
    """Give the clock of the fleet; it is right again after the test."""
    yield _stepped[1]
    _stepped[1].set_ahead(0.0)


@pytest.fixture
async def stepped_lab(_stepped: tuple[Fleet, SteppedClock]) -> AsyncIterator[Lab]:
    """Give a lab on the fleet whose clock can be set."""
    directory = Path(tempfile.mkdtemp(dir=_stepped[0].directory))
    async with Lab(_stepped[0], directory) as lab:
        yield lab
        await lab.tidy()


@pytest.mark.parametrize("step", [*STEPS_S])
async def test_a_peer_that_is_silent_at_the_switch_over_has_no_more_time_when_the_clock_is_set(
    step, stepped_lab: Lab, clock: SteppedClock
):
    lab = stepped_lab
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(plain=True, bandwidth_mib_s=1, max_downtime_s=ALLOWED_S, policy=POLICY_FAST))
    await move.wait_source_phase("Transferring")

    with frozen(lab.fleet.pid("agent-a")) as let_agent_go_on:
        since_s = now_s()
        await guest.wait_stopped(pid, 0.2)
        with frozen(await lab.qemu_pid("host-b")):
            clock.set_ahead(STEPS_S[step])
            let_agent_go_on()
            half = await move.wait_source_phase("Kept")
            await guest.console.wait_ticks(5)
            guest.assert_no_gap(ALLOWED_S + MARGIN_S, since_s)
    outcome = await move.outcome()

    assert half.error_reason == "STANDSTILL_TOO_LONG"
    assert outcome.state == State.STATE_FAILED
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_clock_that_is_set_ahead_ends_no_time_that_is_allowed(stepped_lab: Lab, clock: SteppedClock):
    lab = stepped_lab
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(plain=True, bandwidth_mib_s=SLOW_MIB_S, max_duration_s=60))
    await move.wait_transferring()

    clock.set_ahead(600.0)
    await guest.console.wait_ticks(200)
    half = await move.at_source()
    await lab.update_until_accepted(move, bandwidth_mib_s=0)
    outcome = await move.outcome()

    assert half.phase == "Transferring"
    assert half.progress.elapsed.ToTimedelta().total_seconds() < LONGEST_S
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@cases(("step", "phase"), (tuple(STEPS_S), PHASES), [("back-2-days", "Sent"), ("ahead-600s", "Switching")])
async def test_what_is_told_of_a_move_does_not_follow_the_wall_clock(step, phase, stepped_lab: Lab, clock: SteppedClock):
    lab = stepped_lab
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(bandwidth_mib_s=1, max_downtime_s=PATIENT_S, policy=POLICY_FAST))
    await move.wait_source_phase("Transferring")
    began_s = now_s()

    if phase == "Sent":
        async with sent(lab, guest, move):
            clock.set_ahead(STEPS_S[step])
    else:
        with frozen(lab.fleet.pid("agent-a" if phase == "Switching" else "agent-b")):
            if phase == "Switching":
                await guest.wait_stopped(pid, 0.2)
            clock.set_ahead(STEPS_S[step])
    outcome = await move.outcome()
    lasted_s = now_s() - began_s

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert seconds(0).ToTimedelta() < outcome.downtime.total.ToTimedelta() < seconds(lasted_s).ToTimedelta()
    assert outcome.progress.elapsed.ToTimedelta() < seconds(lasted_s + LONGEST_S).ToTimedelta()
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
