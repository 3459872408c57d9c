"""Cancel, pause and new bounds in each phase: taken and done within 2 s, or refused at once with where the guest is."""

from __future__ import annotations

import os
import signal
from uuid import uuid4

import pytest

from ferry.agent.v1 import migration_pb2 as agent_pb
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, frozen, now_s, refused
from tests.e2e.move import Move, State, Where, post_copy, seconds, wishes
from tests.e2e.steps import Steps, steps
from tests.e2e.test_post_copy import assert_moved, plan_of, start_slow

CANCEL_LIMIT_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)


def by_hand(hand: Steps, lab: Lab) -> Move:
    return Move(hand.migration_id, lab.coordinator, hand.source, hand.destination)


async def assert_cancelled(move: Move, since_s: float) -> None:
    """Fail unless the move is cancelled, within the limit, with the guest at the source."""
    outcome = await move.outcome()
    took_s = now_s() - since_s
    assert (outcome.state, outcome.error_reason) == (State.STATE_CANCELLED, "CANCELLED"), outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert took_s < CANCEL_LIMIT_S


async def test_a_cancel_while_the_destination_does_not_answer_ends_the_move_in_time(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=2.0))
    with frozen(lab.fleet.pid("agent-b")):
        since_s = now_s()
        await move.cancel()
        await assert_cancelled(move, since_s)

    await lab.assert_only_on("host-a", guest)
    again = await (await lab.start_move()).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_cancel_while_the_source_does_not_answer_is_heeded_once_it_does(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=2.0))
    await move.wait_transferring()
    pid = lab.fleet.pid("agent-a")
    os.kill(pid, signal.SIGSTOP)
    try:
        whole = await move.cancel()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not whole.error or "host-a" in whole.error
    outcome = await move.outcome()
    assert outcome.state == State.STATE_CANCELLED, outcome.error
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("phase", ["Begun", "Prepared"])
async def test_a_cancel_before_the_transfer_keeps_the_guest_and_frees_the_destination(phase, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    async with steps(lab) as hand:
        await hand.begin()
        if phase == "Prepared":
            await hand.prepare()
        since_s = now_s()
        await hand.cancel()
        half = await by_hand(hand, lab).wait_source_phase("Kept")
        assert now_s() - since_s < CANCEL_LIMIT_S
        assert half.error_reason == "CANCELLED"
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_bounds_and_a_pause_are_taken_before_the_transfer_and_hold_in_it(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    async with steps(lab) as hand:
        await hand.begin_and_prepare()
        update = agent_pb.UpdateMigrationRequest(
            request_id=str(uuid4()),
            epoch=1,
            migration_id=hand.migration_id,
            bandwidth_bytes_per_second=1 << 20,
            max_downtime=seconds(0.004),
            max_duration=seconds(600),
        )
        await hand.source.UpdateMigration(update)
        await hand.source.PauseMigration(agent_pb.PauseMigrationRequest(epoch=1, migration_id=hand.migration_id))
        call = hand.start_perform()
        half = await by_hand(hand, lab).wait_transferring()
        assert half.options.bandwidth_bytes_per_second == 1 << 20
        assert half.options.max_downtime.ToMilliseconds() == 4
        half = await by_hand(hand, lab).wait_source(lambda half: half.progress.bytes_per_second, "a rate")
        assert half.progress.bytes_per_second < 2 << 20
        await guest.wait_silent(1.5)
        call.cancel()
        await hand.cancel()
        await by_hand(hand, lab).wait_source_phase("Kept")
    await guest.console.wait_ticks(3)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_from_the_hand_over_on_a_cancel_says_at_once_that_the_guest_runs_on_the_destination(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    async with steps(lab) as hand:
        await hand.begin_and_prepare()
        half = await hand.perform()
        assert half.phase == "HandedOver"
        since_s = now_s()
        with refused("GUEST_SENT", "not possible any more, the guest runs on host-b", hand.migration_id):
            await hand.cancel()
        move = by_hand(hand, lab)
        with refused("TOO_LATE", hand.migration_id):
            await hand.source.PauseMigration(agent_pb.PauseMigrationRequest(epoch=1, migration_id=hand.migration_id))
        with refused("TOO_LATE", hand.migration_id):
            await hand.source.UpdateMigration(
                agent_pb.UpdateMigrationRequest(epoch=1, migration_id=hand.migration_id, bandwidth_bytes_per_second=1)
            )
        assert now_s() - since_s < 1.0
        await hand.finish_and_confirm()
        half = await move.wait_source_phase("Retired")
        with refused("GUEST_SENT", "not possible any more, the guest runs on host-b"):
            await hand.cancel()
        hand.prepared.ClearField("agent_address")
        hand.begun.ClearField("definition")
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_in_post_copy_only_its_own_bandwidth_can_be_changed(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "psk")

    with refused("TOO_LATE", move.id):
        await move.update(max_duration_s=10)
    with refused("TOO_LATE", move.id):
        await move.update(bandwidth_mib_s=8, max_duration_s=10)
    with refused("TOO_LATE", move.id):
        await move.pause()
    with refused("GUEST_SENT", "not possible any more, the guest runs on host-b and part of its memory is still here"):
        await move.cancel()
    await move.update(bandwidth_mib_s=64)

    await assert_moved(lab, guest, move)


async def test_while_the_connection_of_post_copy_is_lost_a_cancel_and_bounds_are_refused_at_once(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "tunnel")
    await lab.kill("tunnel-a")
    await move.wait_source_phase("Broken")

    since_s = now_s()
    with refused("GUEST_SENT", "not possible any more, the guest runs on host-b"):
        await move.cancel()
    with refused("TOO_LATE", move.id):
        await move.update(bandwidth_mib_s=8)
    with refused("TOO_LATE", move.id):
        await move.pause()
    assert now_s() - since_s < 1.0
    await lab.restart("tunnel-a")

    await assert_moved(lab, guest, move)


async def test_a_cancel_is_taken_while_post_copy_waits_for_its_chance(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("10.0", "10.0")))
    with_post_copy = wishes(plain=True, bandwidth_mib_s=1, post_copy=post_copy())
    move = await lab.start_move(options=with_post_copy)
    await move.wait_transferring()
    with frozen(await lab.qemu_pid("host-b")):
        await move.source.StartPostcopy(agent_pb.StartPostcopyRequest(epoch=1, migration_id=move.id))
        half = await move.at_source()
        since_s = now_s()
        if half.phase == "Leaving" and await lab.try_cancel(move):
            await assert_cancelled(move, since_s)
            await lab.wait_empty("host-b")
            await guest.console.wait_ticks(3)
            return
    await move.outcome(timeout_s=60)
