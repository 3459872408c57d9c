"""The network between two hosts is cut, silent or slow while disks are copied, in namespaces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from deploy.lab.network import TwoHosts
from tests.e2e.disk_guest import DiskPlan
from tests.e2e.disk_stages import AREA, SETTLING_DOWNTIME_S, Stage, cold_disk, start_disk_move
from tests.e2e.lab import Lab, now_s
from tests.e2e.move import State
from tests.e2e.test_silent_network import HANDSHAKE_BYTES, dropped, port_of, silenced

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("network"), pytest.mark.timeout(120)]

FAILED = State.STATE_FAILED
MARGIN_S = 2.0
STALL_LIMIT_S = 10.0
SILENT = ("DISK_COPY_STALLED", "DISK_COPY_FAILED", "STANDSTILL_TOO_LONG", "PEER_SILENT", "TUNNEL_LOST")


@contextmanager
def reset(network: TwoHosts, host: str, *match: str) -> Iterator[None]:
    """Answer what comes into a host and matches with a reset, as when its connections are cut."""
    nft = (*network.prefix(host), "nft")
    chain = ("inet", "ferry_e2e", "input")
    subprocess.run([*nft, "add", "table", *chain[:2]], check=True)
    try:
        subprocess.run([*nft, "add", "chain", *chain, "{ type filter hook input priority 0; }"], check=True)
        subprocess.run([*nft, "add", "rule", *chain, *match, "reject", "with", "tcp", "reset"], check=True)
        yield
    finally:
        subprocess.run([*nft, "delete", "table", *chain[:2]], check=True)


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("stage", [Stage.COPYING, Stage.SENDING])
async def test_connections_that_are_cut_fail_the_move_and_not_the_guests_writes(
    stage, way, lab_apart_watched: Lab, network: TwoHosts
):
    moving = await start_disk_move(lab_apart_watched, stage, way)
    await moving.reach()

    with reset(network, "host-b", *port_of(lab_apart_watched, way)):
        await moving.move.wait_source_phase("Kept", timeout_s=30)

    assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    outcome = await moving.move.outcome()
    assert outcome.state == FAILED
    assert "host-b" in outcome.error
    await moving.assert_as_before()
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("stage", [Stage.COPYING, Stage.SENDING])
async def test_a_silent_network_fails_the_move_and_the_guest_goes_on(stage, way, lab_apart_watched: Lab, network: TwoHosts):
    moving = await start_disk_move(lab_apart_watched, stage, way)
    await moving.reach()
    silent_at_s = now_s()

    with silenced(network, "host-b"):
        await moving.move.wait_source_phase("Kept", timeout_s=40)
        await moving.guest.console.wait_written(5, disk=1)

    assert moving.guest.console.max_write_gap_s(1, silent_at_s) < STALL_LIMIT_S + 3 * MARGIN_S
    moving.guest.assert_no_gap(MARGIN_S, silent_at_s)
    outcome = await moving.move.outcome(timeout_s=60)
    assert outcome.state == FAILED
    assert outcome.error_reason in SILENT, outcome.error
    await moving.assert_as_before()
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_network_silent_while_the_copies_are_settled_gives_the_guest_back(way, lab_apart_watched: Lab, network: TwoHosts):
    moving = await start_disk_move(lab_apart_watched, Stage.SETTLING, way)
    with ExitStack() as silence:
        async with moving.stopped_for_settling():
            silence.enter_context(silenced(network, "host-b"))
            since_s = now_s()
        await moving.guest.console.wait_ticks(5)
        moving.guest.assert_no_gap(SETTLING_DOWNTIME_S + 1.0 + MARGIN_S, since_s)
        await moving.move.wait_source_phase("Kept")

    outcome = await moving.move.outcome(timeout_s=60)
    assert outcome.state == FAILED
    assert "host-b" in outcome.error
    await moving.assert_as_before()
    await moving.assert_moves_now()


@pytest.mark.matrix
async def test_an_nbd_server_that_greets_and_says_no_more_freezes_the_guest_for_a_moment_at_most(
    lab_apart_watched: Lab, network: TwoHosts
):
    lab = lab_apart_watched
    with dropped(network, "host-b", *port_of(lab, "psk"), "meta", "length", ">", str(HANDSHAKE_BYTES)):
        moving = await start_disk_move(lab, Stage.COPYING)
        await moving.move.wait_source_phase("Kept")

    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    await moving.assert_kept(FAILED, "DISK_COPY_FAILED", words=("vdb", "host-b", "cancelled by timeout"))
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_a_guest_that_writes_faster_than_the_link_is_slowed_down_and_arrives(way, lab_apart_watched: Lab, network: TwoHosts):
    lab = lab_apart_watched
    fast = replace(AREA, write_mib_s=12.0, verify_mib_s=1.0, depth=16)
    plan = DiskPlan(disks=(replace(cold_disk(lab.directory), area=fast),))
    network.slow_down("host-a", "40mbit")
    try:
        moving = await start_disk_move(lab, Stage.ALL, way, plan=plan)
        outcome = await moving.move.outcome(timeout_s=90)
    finally:
        network.slow_down("host-a", "10gbit")

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await moving.assert_arrived()
