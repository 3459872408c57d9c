"""A QEMU or a tunnel is killed before there is a connection, and while QEMU waits for the word to switch over."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.held import PATIENT_S, TINY
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, Move, State, Where, Whole, wishes
from tests.e2e.steps import steps
from tests.e2e.waiting import until


def assert_gone(outcome: Whole) -> None:
    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_NOWHERE)
    assert outcome.error_reason == "QEMU_ENDED"
    assert "source" in outcome.error


def assert_kept(outcome: Whole) -> None:
    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    assert outcome.error_reason
    assert "host-b" in outcome.error or "tunnel" in outcome.error


async def assert_it_can_be_tried_again(lab: Lab, to: str) -> None:
    again = await (await lab.start_move(to=to)).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("hosts", [("host-a", "host-b"), ("host-b", "host-a")], ids=["7.2-10.0", "10.0-7.2"])
async def test_a_qemu_killed_in_the_tls_handshake_ends_the_move_where_the_guest_is(hosts, victim, lab: Lab):
    source, destination = hosts
    guest = await lab.start_guest(source)
    async with steps(lab, to=destination) as by_hand:
        await by_hand.begin_and_prepare()
        move = Move(by_hand.migration_id, lab.coordinator, by_hand.source, by_hand.destination)
        since_s = now_s()
        pid = await lab.qemu_pid(destination)
        with frozen(pid):
            call = by_hand.start_perform()
            await move.wait_source_phase("Connecting")
            os.kill(await lab.qemu_pid(source) if victim == "source" else pid, signal.SIGKILL)
            half = await move.wait_source(lambda half: half.is_final, "an end")
            call.cancel()
        if victim == "source":
            by_hand.begun.ClearField("definition")

    assert half.error
    if victim == "source":
        assert (half.phase, half.error_reason) == ("Lost", "QEMU_ENDED")
        await until(lambda: not lab.qemus(), "no QEMU left")
        await lab.wait_empty(destination)
        assert await lab.vms(source) == {guest.name: "CRASHED"}
    else:
        assert half.phase == "Kept"
        guest.assert_no_gap(2.3, since_s)
        await lab.assert_only_on(source, guest)
        await assert_it_can_be_tried_again(lab, destination)
    guest.assert_whole()


@pytest.mark.parametrize("server", ["tunnel-a", "tunnel-b"])
async def test_a_tunnel_killed_before_the_connection_is_made_leaves_the_guest_running(server, lab: Lab):
    guest = await lab.start_guest()
    since_s = now_s()
    async with steps(lab, wishes(tunnel=True)) as by_hand:
        await by_hand.begin_and_prepare()
        await lab.kill(server)

        half = await by_hand.perform()
        await lab.restart(server)

        assert half.phase == "Kept"
        assert "tunnel" in half.error
    guest.assert_no_gap(1.0, since_s)
    await lab.assert_only_on("host-a", guest)
    await assert_it_can_be_tried_again(lab, "host-b")
    guest.assert_whole()


@pytest.mark.parametrize(
    ("way", "victim"),
    [
        ("psk", "source"),
        ("plain", "destination"),
        ("psk", "destination"),
        ("tunnel", "destination"),
        ("tunnel", "tunnel-a"),
        ("tunnel", "tunnel-b"),
    ],
)
async def test_what_is_killed_while_qemu_waits_for_the_word_to_switch_over_leaves_the_guest_where_it_is(way, victim, lab: Lab):
    """No event tells of it: the agent that gives the word stands still meanwhile."""
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=1.0, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")
    pids = {"source": await lab.qemu_pid("host-a"), "destination": await lab.qemu_pid("host-b")}

    with frozen(lab.fleet.pid("agent-a")):
        await guest.wait_stopped(pids["source"], 0.5)  # it waits for the word
        if victim in pids:
            os.kill(pids[victim], signal.SIGKILL)
        else:
            await lab.kill(victim)
    outcome = await move.outcome()

    if victim == "source":
        assert_gone(outcome)
        await until(lambda: not lab.qemus(), "no QEMU left")
        await lab.wait_empty("host-b")
    else:
        assert_kept(outcome)
        if victim not in pids:
            await lab.restart(victim)
        await guest.console.wait_ticks(3)
        await lab.assert_only_on("host-a", guest)
        await assert_it_can_be_tried_again(lab, "host-b")
    guest.assert_whole()
