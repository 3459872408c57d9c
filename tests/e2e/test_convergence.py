"""Transfers that would not end by themselves end, inside what their user allowed, and say what was decided."""

from __future__ import annotations

import asyncio

from ferry.common.v1.budget_pb2 import (
    POLICY_FAST,
    POLICY_MUST_FINISH,
    TIMEOUT_ACTION_PAUSE,
    Decision,
)
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, now_s
from tests.e2e.move import State, Where, Whole, wishes

# Writes all of its memory faster than the moves here may send it, so that each pass leaves the same again.
BUSY = Plan(megabytes=16, dirty_mib_s=48.0, sweeps_per_s=0.5)
SLOW_MIB_S = 8.0
# Leaves time for a pass before what is left at its end must be sent at once.
DURATION_S = 6.0


def choices(outcome: Whole) -> list[str]:
    return [Decision.Choice.Name(one.choice).removeprefix("CHOICE_") for one in outcome.progress.decisions]


async def test_a_transfer_that_does_not_end_in_time_is_given_up_and_the_guest_runs_on(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)

    since_s = now_s()
    outcome = await (await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, max_duration_s=4.0))).outcome()

    assert 4.0 <= now_s() - since_s < 7.0
    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    assert outcome.error_reason == "TIMED_OUT"
    assert "not done in the 4 s of max-duration" in outcome.error
    assert "could not be loaded" not in outcome.error
    assert choices(outcome)[-1] == "ABORT"
    assert outcome.progress.decisions[-1].is_timeout
    await lab.assert_only_on("host-a", guest)
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_must_finish_ends_inside_its_duration_by_a_pause_where_that_was_allowed(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    options = wishes(
        bandwidth_mib_s=SLOW_MIB_S,
        policy=POLICY_MUST_FINISH,
        max_duration_s=DURATION_S,
        on_timeout=TIMEOUT_ACTION_PAUSE,
        max_downtime_s=0.05,
    )

    since_s = now_s()
    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert now_s() - since_s < DURATION_S + 2.0
    assert choices(outcome)[-1] == "PAUSE"
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_fast_slows_the_guest_down_until_it_fits(lab: Lab):
    guest = await lab.start_guest(plan=Plan(megabytes=8, dirty_mib_s=24.0, sweeps_per_s=1.0))
    options = wishes(bandwidth_mib_s=16.0, policy=POLICY_FAST, max_downtime_s=0.2)

    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert choices(outcome)[0] == "THROTTLE"
    assert outcome.downtime.total.ToTimedelta().total_seconds() < 1.0
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_the_standstill_is_raised_within_its_bound_when_passes_shrink_no_further(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    options = wishes(bandwidth_mib_s=24.0, max_downtime_s=3.0)

    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert set(choices(outcome)) == {"RAISE_DOWNTIME"}
    limits = [one.downtime_limit.ToTimedelta().total_seconds() for one in outcome.progress.decisions]
    assert limits == sorted(limits)
    assert limits[-1] <= 3.0
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_a_duration_given_on_the_way_is_heeded_and_shown(lab: Lab):
    await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()

    await asyncio.to_thread(lab.fleet.ferry, "migration", "set", move.id, "--max-duration", "2s", check=True)
    outcome = await move.outcome()
    shown = await asyncio.to_thread(lab.fleet.ferry, "migration", "show", move.id, check=True)

    assert choices(outcome) == ["BOUNDS", "ABORT"]
    assert "time is over: given up" in shown.stdout


async def test_what_cannot_be_promised_is_refused_before_anything_starts(lab: Lab):
    await lab.start_guest()

    refused = await asyncio.to_thread(lab.fleet.ferry, "migrate", "web", "--to", "host-b", "--policy", "must-finish")

    assert refused.returncode == 2
    assert "--policy must-finish needs --max-duration" in refused.stderr
