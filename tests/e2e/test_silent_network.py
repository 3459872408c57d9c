"""The network between two hosts goes silent, in namespaces: the guest runs on at the source, and the result says why."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.lab.network import TwoHosts
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.common.v1.budget_pb2 import POLICY_FAST
from tests.e2e.guest import Plan
from tests.e2e.held import sent, start_held
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, State, Where
from tests.e2e.tables import cases, one_each

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("network")]

ALLOWED_S = 1.0
MARGIN_S = 2.0
SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)
# Has more left for the time that it stands still than all buffers of the way hold.
LARGE = Plan(megabytes=32, dirty_mib_s=60.0, sweeps_per_s=0.5)
BY = ("plain", "psk", "tunnel")
FILLED = {"channel-full": LARGE, "all-buffered": TINY}
FAST_MIB_S = 30
# Larger than what makes a TCP connection, smaller than what opens a TLS one.
HANDSHAKE_BYTES = 120


@contextmanager
def dropped(network: TwoHosts, host: str, *match: str) -> Iterator[None]:
    """Drop what comes into a host and matches."""
    nft = (*network.prefix(host), "nft")
    chain = ("inet", "ferry_e2e", "input")
    subprocess.run([*nft, "add", "table", *chain[:2]], check=True)
    try:
        subprocess.run([*nft, "add", "chain", *chain, "{ type filter hook input priority 0; }"], check=True)
        subprocess.run([*nft, "add", "rule", *chain, *match, "drop"], check=True)
        yield
    finally:
        subprocess.run([*nft, "delete", "table", *chain[:2]], check=True)


@contextmanager
def silenced(network: TwoHosts, host: str) -> Iterator[None]:
    """Let all packets of a host vanish."""
    network.silence(host)
    try:
        yield
    finally:
        network.heal(host)


def port_of(lab: Lab, way: str) -> tuple[str, ...]:
    """Match what goes to the destination's migration port, or to its tunnel."""
    if way == "tunnel":
        return ("tcp", "dport", lab.fleet.tunnel_address("host-b").rpartition(":")[2])
    pool = lab.fleet.ports.pool(1)
    return ("tcp", "dport", f"{pool.first}-{pool.last}")


@pytest.mark.parametrize("way", ["plain", "psk", "multifd", "tunnel"])
async def test_a_cancel_while_no_connection_comes_about_ends_at_once(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest()
    with dropped(network, "host-b", *port_of(lab, way)):
        move = await lab.start_move(options=WAYS[way]())
        await move.wait_source_phase("Connecting")
        since_s = now_s()
        await guest.console.wait_ticks(30)

        asked_at_s = now_s()
        await move.cancel()
        await move.wait_source_phase("Kept")
        took_s = now_s() - asked_at_s
        outcome = await move.outcome()

    assert took_s < MARGIN_S
    assert outcome.state == State.STATE_CANCELLED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    again = await (await lab.start_move(options=WAYS[way]())).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    guest.assert_whole()


@pytest.mark.parametrize("way", ["plain", "tunnel"])
async def test_a_connection_that_never_comes_about_is_given_up(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest()
    since_s = now_s()
    with dropped(network, "host-b", *port_of(lab, way)):
        move = await lab.start_move(options=WAYS[way]())
        outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert network.address("host-b") in outcome.error or "host-b" in outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_tls_handshake_whose_packets_vanish_frees_the_guest_in_time(lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest()
    since_s = now_s()
    with dropped(network, "host-b", *port_of(lab, "psk"), "meta", "length", ">", str(HANDSHAKE_BYTES)):
        move = await lab.start_move()
        outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert outcome.error_reason == "PEER_SILENT"
    assert "host-b" in outcome.error
    await guest.console.wait_ticks(5)
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_network_silent_while_memory_is_sent_does_not_stop_the_guest(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    with silenced(network, "host-b"):
        await guest.console.wait_ticks(100)
        await move.cancel()
        await move.wait_source_phase("Kept", timeout_s=MARGIN_S)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_CANCELLED, outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@cases(("way", "filled"), (BY, tuple(FILLED)), one_each(BY, tuple(FILLED)))
async def test_a_network_silent_after_migrate_continue_gives_the_guest_back(way, filled, lab_apart: Lab, network: TwoHosts):
    lab, plan = lab_apart, FILLED[filled]
    bandwidth_mib_s, allowed_s = (FAST_MIB_S, 1.0) if plan is LARGE else (1, ALLOWED_S)
    guest = await lab.start_guest(plan=plan)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=bandwidth_mib_s, max_downtime_s=allowed_s, policy=POLICY_FAST))
    await move.wait_source_phase("Transferring")

    with frozen(lab.fleet.pid("agent-a")) as let_agent_go_on:
        since_s = now_s()
        await guest.wait_stopped(pid, 0.2)  # it waits for the agent's word
        with silenced(network, "host-b"):
            let_agent_go_on()
            half = await move.wait_source_phase("Kept")
            await guest.console.wait_ticks(5)
            guest.assert_no_gap(allowed_s + MARGIN_S, since_s)
    outcome = await move.outcome()

    assert half.error_reason in {"STANDSTILL_TOO_LONG", "PEER_SILENT"}  # the agent there is as silent as its QEMU
    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert "host-b" in outcome.error
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_network_silent_after_completion_keeps_the_guest_for_the_destination(lab_apart: Lab, network: TwoHosts):
    """From `completed` on the source never starts the guest: it stands still until the destination can be reached."""
    lab = lab_apart
    guest, move = await start_held(lab)

    async with sent(lab, guest, move) as let_agent_go_on:
        with silenced(network, "host-b"):
            let_agent_go_on()
            half = await move.wait_source(lambda half: half.waiting_for, "whom it waits for", timeout_s=30)
            whole = await move.wait(lambda whole: whole.state == State.STATE_WAITING, "STATE_WAITING")
            assert (await lab.vms("host-a"))[guest.name] == "PAUSED"
    outcome = await move.outcome()

    assert half.phase == "Sent"
    assert "host-b" in half.waiting_for
    assert [advice.command for advice in half.advice] == [agent_pb.Advice.COMMAND_FENCE, agent_pb.Advice.COMMAND_RELEASE]
    assert "ferry migration fence" in whole.error
    assert "host-b" in whole.error
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
