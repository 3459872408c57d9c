"""A cancel ends every phase before the guest was sent with the guest at the source, and is refused from then on."""

from __future__ import annotations

import pytest

from tests.e2e.guest import Plan
from tests.e2e.held import sent, start_held
from tests.e2e.lab import Lab, frozen, now_s, refused
from tests.e2e.move import WAYS, Move, State, Where
from tests.e2e.steps import steps

CANCEL_LIMIT_S = 2.0
SLOW_MIB_S = 2.0
# Writes faster than the move is allowed to send, so that it never converges.
BUSY = Plan(dirty_mib_s=8.0)
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)


async def cancel_in_time(move: Move) -> None:
    """Cancel, and fail unless the guest is the source's again within the limit."""
    asked_at_s = now_s()
    await move.cancel()
    outcome = await move.outcome()
    took_s = now_s() - asked_at_s

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert outcome.error_reason == "CANCELLED"
    assert took_s < CANCEL_LIMIT_S


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancel_while_memory_is_sent_keeps_the_guest_which_can_be_moved_again(way, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    await cancel_in_time(move)

    await lab.assert_only_on("host-a", guest)
    guest.assert_no_gap(1.0, since_s)
    again = await lab.start_move(options=WAYS[way]())
    outcome = await again.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_cancel_right_after_the_start_leaves_nothing_on_the_destination(lab: Lab):
    guest = await lab.start_guest()
    move = await lab.start_move()

    await move.cancel()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("is_mute", [False, True], ids=["at-once", "when-mute"])
async def test_a_cancel_in_a_tls_handshake_that_gets_no_answer_frees_the_guest(is_mute, lab: Lab):
    guest = await lab.start_guest()
    async with steps(lab) as by_hand:
        await by_hand.begin_and_prepare()
        move = Move(by_hand.migration_id, lab.coordinator, by_hand.source, by_hand.destination)

        with frozen(await lab.qemu_pid("host-b")):
            call = by_hand.start_perform()
            await move.wait_source_phase("Connecting")
            if is_mute:
                await guest.wait_silent(0.2)
            since_s = now_s()
            await by_hand.cancel()
            half = await move.wait_source(lambda half: half.is_final, "an end")
            took_s = now_s() - since_s
            call.cancel()

        assert half.phase == "Kept"
        assert took_s < CANCEL_LIMIT_S
        guest.assert_no_gap(CANCEL_LIMIT_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
async def test_a_cancel_while_the_whole_guest_awaits_its_acknowledgement_takes_it_back(way, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=0.2, max_downtime_s=5.0))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        await cancel_in_time(move)

    await guest.console.wait_ticks(5)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_cancel_sent_at_the_switch_over_leaves_one_guest_whoever_wins(way, lab: Lab):
    guest = await lab.start_guest()
    move = await lab.start_move(options=WAYS[way]())
    await move.wait_source(lambda half: half.phase not in ("Begun", "Connecting", "Transferring"), "the switch-over")

    with_cancel = await lab.try_cancel(move)
    outcome = await move.outcome()

    if outcome.state == State.STATE_CANCELLED:
        assert with_cancel
        await lab.assert_only_on("host-a", guest)
    else:
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await lab.assert_only_on("host-b", guest)
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_a_cancel_after_the_guest_was_sent_is_refused_and_the_move_ends_well(lab: Lab):
    guest, move = await start_held(lab)

    async with sent(lab, guest, move):
        half = await move.at_source()
        assert half.resume_token
        with refused("GUEST_SENT", "host-b", move.id):
            await move.cancel()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    with refused("MIGRATION_ENDED", move.id, "destination"):
        await move.cancel()
    guest.assert_whole()
