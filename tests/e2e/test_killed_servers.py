"""Agents, tunnels and the coordinator are killed and started again while a guest moves: one guest, and a result that says where."""

from __future__ import annotations

import json

import pytest

from ferry.common.v1.budget_pb2 import POLICY_FAST
from tests.e2e.guest import Guest, Plan
from tests.e2e.held import sent, start_held
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, Move, State, Where, Whole, wishes
from tests.e2e.tables import cases, one_each

SERVERS = ("agent-a", "agent-b", "coordinator")
SLOW_MIB_S = 2.0
# Writes faster than the move is allowed to send, so that it never converges.
BUSY = Plan(dirty_mib_s=8.0)
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)
# Longer than it takes to start an agent again.
PATIENT_S = 20.0


async def assert_as_told(lab: Lab, guest: Guest, outcome: Whole) -> None:
    """Fail unless one guest runs, whole, on the host that the outcome names."""
    hosts = {Where.GUEST_LOCATION_SOURCE: outcome.source_host, Where.GUEST_LOCATION_DESTINATION: outcome.destination_host}
    await lab.assert_only_on(hosts[outcome.guest_location], guest)
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


def forget_the_timeline(lab: Lab, move: Move) -> None:
    """Take from the source's record when the guest was stopped."""
    path = lab.fleet.directory / "host-a" / "sessions" / f"{move.id}.json"
    record = json.loads(path.read_text())
    record["body"]["facts"]["timeline"].update(stopped_at_s=None, continued_at_s=None)
    path.write_text(json.dumps(record))


async def assert_moved(lab: Lab, guest: Guest, move: Move) -> None:
    """Fail unless the move succeeds."""
    outcome = await move.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
    await assert_as_told(lab, guest, outcome)


async def assert_kept(lab: Lab, guest: Guest, move: Move, *words: str) -> Whole:
    """Fail unless the move fails, for a reason with these words, and the guest is where it was."""
    outcome = await move.outcome()
    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert outcome.error_reason
    for word in words:
        assert word in outcome.error
    await assert_as_told(lab, guest, outcome)
    return outcome


# in mid-precopy


@cases(("server", "way"), (SERVERS, ("psk", "tunnel")), [*one_each(SERVERS, ("psk",)), ("agent-a", "tunnel")])
async def test_a_server_killed_while_memory_is_sent_takes_the_move_up_again(server, way, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    await lab.kill(server)
    await guest.console.wait_ticks(10)
    await lab.restart(server)
    await move.wait_source_phase("Transferring")
    await lab.update_until_accepted(move, bandwidth_mib_s=0)

    await assert_moved(lab, guest, move)
    guest.assert_no_gap(2.3, since_s)


@pytest.mark.parametrize("server", ["tunnel-a", "tunnel-b"])
async def test_a_killed_tunnel_fails_the_attempt_and_never_the_guest(server, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(tunnel=True, bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    await lab.kill(server)

    await assert_kept(lab, guest, move)
    guest.assert_no_gap(1.0, since_s)
    await lab.restart(server)
    await assert_moved(lab, guest, await lab.start_move(options=wishes(tunnel=True)))


@pytest.mark.parametrize("server", ["tunnel-a", "tunnel-b"])
async def test_a_tunnel_killed_while_the_whole_guest_awaits_its_acknowledgement_gives_it_back(server, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=wishes(tunnel=True, bandwidth_mib_s=0.2, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        since_s = now_s()
        await lab.kill(server)
        outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.error
    await guest.console.wait_ticks(5)
    guest.assert_no_gap(2.3, since_s)
    await assert_as_told(lab, guest, outcome)
    await lab.restart(server)


# around the switch-over


async def test_a_source_agent_killed_while_its_qemu_waits_to_switch_over_goes_on_when_it_is_back(lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=wishes(bandwidth_mib_s=1.0, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")

    with frozen(lab.fleet.pid("agent-a")):
        await guest.wait_stopped(pid, 0.5)  # it waits for a word
        await lab.kill("agent-a")
    await lab.restart("agent-a")

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
async def test_a_source_agent_killed_after_its_decision_finishes_the_move_if_qemu_does(way, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=0.2, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        await lab.kill("agent-a")
    await lab.restart("agent-a")

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("forgets", [False, True], ids=["later", "at-once"])
async def test_a_source_agent_killed_after_its_decision_takes_the_guest_back_if_nobody_acknowledges_it(forgets, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=0.2, policy=POLICY_FAST))
    await move.wait_source_phase("Transferring")

    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        await lab.kill("agent-a")
        if forgets:  # as when it was killed before it could write down more than the decision
            forget_the_timeline(lab, move)
        await lab.restart("agent-a")
        await move.wait_source_phase("Kept")

    await assert_kept(lab, guest, move, "stood still", "host-b")


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_killed_between_completion_and_resume_finishes_the_move(server, lab: Lab):
    guest, move = await start_held(lab)

    async with sent(lab, guest, move):
        await lab.kill(server)
        if server != "agent-b":
            await lab.restart(server)
    if server == "agent-b":
        await lab.restart(server)

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_killed_at_the_moment_of_the_switch_over_leaves_one_guest(server, lab: Lab):
    guest = await lab.start_guest()
    move = await lab.start_move(options=wishes())

    await move.wait_source(lambda half: half.phase not in ("Begun", "Connecting", "Transferring"), "the switch-over")
    await lab.kill(server)
    await lab.restart(server)
    outcome = await move.outcome()

    assert outcome.state in (State.STATE_SUCCEEDED, State.STATE_FAILED), outcome.error
    await assert_as_told(lab, guest, outcome)


# before the transfer


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_killed_while_the_move_is_prepared_leaves_the_guest_or_moves_it(server, lab: Lab):
    guest = await lab.start_guest()
    await lab.wait_reachable()
    move = await lab.start_move()

    await lab.kill(server)
    await lab.restart(server)
    outcome = await move.outcome()

    assert outcome.state in (State.STATE_SUCCEEDED, State.STATE_FAILED), outcome.error
    assert outcome.error or outcome.state == State.STATE_SUCCEEDED
    await assert_as_told(lab, guest, outcome)


async def test_every_server_killed_at_once_while_memory_is_sent_still_leaves_one_guest(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()

    for server in ("coordinator", "agent-a", "agent-b"):
        await lab.kill(server)
    for server in ("agent-a", "agent-b", "coordinator"):
        await lab.restart(server)
    await lab.update_until_accepted(move, bandwidth_mib_s=0)

    await assert_moved(lab, guest, move)
