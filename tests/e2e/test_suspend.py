"""A guest that stays paused at the destination, because that was wished."""

from __future__ import annotations

import pytest

from ferry.agent.v1 import control_pb2
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import PAUSED, RUNNING, Lab
from tests.e2e.move import WAYS, State, post_copy, wishes

SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)
SUSPEND = modes_pb.Modes(suspend=True)
BY = {
    **{way: make(modes=SUSPEND) for way, make in WAYS.items()},
    "post-copy": wishes(modes=SUSPEND, post_copy=post_copy()),
    "pause": wishes(modes=SUSPEND, pause=True),
}


async def resume(lab: Lab, guest: Guest, host: str) -> None:
    await lab.agents[host].ResumeVm(control_pb2.ResumeVmRequest(vm=guest.name))


@pytest.mark.parametrize("way", BY)
async def test_a_suspended_guest_stays_paused_until_its_user_lets_it_go_on(way, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)

    outcome = await (await lab.start_move(options=BY[way])).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.progress.arrival.is_paused
    await lab.assert_only_on("host-b", guest, PAUSED)
    await guest.wait_silent(0.3)
    await resume(lab, guest, "host-b")
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_cancel_lets_a_guest_that_was_to_be_suspended_run_on(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(modes=SUSPEND, bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()

    await move.cancel()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    await guest.console.wait_ticks(5)
    await lab.assert_only_on("host-a", guest, RUNNING)
    guest.assert_whole()


async def test_a_suspended_guest_moves_on_paused(lab: Lab):
    guest = await lab.start_guest()
    await (await lab.start_move(options=wishes(modes=SUSPEND))).outcome()

    outcome = await (await lab.start_move(to="host-a")).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.progress.arrival.is_paused
    await lab.assert_only_on("host-a", guest, PAUSED)
    await resume(lab, guest, "host-a")
    await guest.console.wait_sweeps(2)
    guest.assert_whole()


async def test_a_guest_that_runs_again_is_told_as_such(lab: Lab):
    guest = await lab.start_guest()

    outcome = await (await lab.start_move()).outcome()

    assert not outcome.progress.arrival.is_paused
    assert outcome.progress.arrival.network_card_count == 0
    await lab.assert_only_on("host-b", guest)
