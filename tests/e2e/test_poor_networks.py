"""Networks that dip, drop everything for a while, or answer late: the move goes on or says why not, and the guest is never hurt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
from google.protobuf.duration_pb2 import Duration

from deploy.lab.network import TwoHosts
from ferry.common.v1.budget_pb2 import Decision
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, now_s
from tests.e2e.move import WAYS, State, Where, post_copy, wishes
from tests.e2e.test_post_copy import hurry
from tests.e2e.test_silent_network import silenced
from tests.e2e.waiting import until_equal

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("network")]

BUSY = Plan(megabytes=24, dirty_mib_s=8.0)
FOLLOWING = Plan(megabytes=24, dirty_mib_s=40.0, sweeps_per_s=2.0)
RATE = "400mbit"
DIP = "24mbit"
ALLOWED_S = 0.4
# The hand-over itself, on a machine that does other things too.
MARGIN_S = 0.4
# What a client waits for after the network is back.
BACK_S = 60.0
LATE_S = 0.08


@contextmanager
def slowed(network: TwoHosts, host: str, rate: str) -> Iterator[None]:
    """Bound what a host sends."""
    network.slow_down(host, rate)
    try:
        yield
    finally:
        network.slow_down(host, "10gbit")


def seconds_of(duration: Duration) -> float:
    """Decode a span of time."""
    return duration.seconds + duration.nanos / 1e9


@pytest.mark.parametrize("way", ["plain", *(pytest.param(way, marks=pytest.mark.matrix) for way in ("psk", "tunnel"))])
async def test_a_dip_of_the_network_does_not_lengthen_the_standstill(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=BUSY)
    with slowed(network, "host-a", RATE):
        move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=12, max_downtime_s=ALLOWED_S))
        await move.wait_transferring()
        await asyncio.sleep(1.0)
        with slowed(network, "host-a", DIP):
            await asyncio.sleep(4.0)
        network.slow_down("host-a", RATE)
        outcome = await move.outcome(timeout_s=BACK_S)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    (device,) = [leg for leg in outcome.downtime.legs if leg.name == "device"]  # what goes over the network while it stands still
    assert seconds_of(device.duration) <= ALLOWED_S + MARGIN_S
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize(
    ("way", "silent_s"),
    [
        ("psk", 1.0),
        ("tunnel", 5.0),
        *(
            pytest.param(way, silent_s, marks=pytest.mark.matrix)
            for way, silent_s in [("psk", 5.0), ("tunnel", 1.0), ("multifd", 1.0), ("multifd", 5.0)]
        ),
    ],
)
async def test_a_move_survives_a_network_that_is_away_for_a_moment(way, silent_s, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=BUSY)
    since_s = now_s()
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=12, max_downtime_s=ALLOWED_S))
    await move.wait_transferring()

    with silenced(network, "host-b"):
        await asyncio.sleep(silent_s)
    outcome = await move.outcome(timeout_s=BACK_S)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    guest.assert_no_gap(ALLOWED_S + 2.0, since_s)
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.matrix
@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
async def test_a_network_that_is_away_for_a_minute_ends_the_move_and_not_the_guest(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=4))
    await move.wait_transferring()
    since_s = now_s()

    with silenced(network, "host-b"):
        half = await move.wait_source_phase("Kept", timeout_s=45)
        await asyncio.sleep(max(60.0 - (now_s() - since_s), 0))
    outcome = await move.outcome(timeout_s=BACK_S)

    assert half.error_reason == ("TRANSFER_FAILED" if way == "tunnel" else "TRANSFER_STALLED")  # a tunnel gives up after 25 s
    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    guest.assert_no_gap(MARGIN_S + 1.0, since_s)
    await lab.assert_only_on("host-a", guest)
    await until_equal(lab.are_hosts_reachable, wanted=True)  # a channel that failed is tried anew after up to 2 s
    again = await (await lab.start_move(options=WAYS[way]())).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    guest.assert_whole()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("way", "silent_s"),
    [
        ("psk", 1.0),
        ("tunnel", 5.0),
        *(
            pytest.param(way, s, marks=pytest.mark.matrix)
            for way, s in [("psk", 5.0), ("tunnel", 1.0), ("psk", 60.0), ("tunnel", 60.0)]
        ),
    ],
)
async def test_post_copy_waits_for_a_network_that_is_away(way, silent_s, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=FOLLOWING)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=16, post_copy=post_copy(bandwidth_mib_s=2)))
    await move.wait_destination_phase("Filling")
    await move.wait_source_phase("Following")

    with silenced(network, "host-b"):
        await asyncio.sleep(silent_s)
    await hurry(move)
    outcome = await move.outcome(timeout_s=2 * BACK_S)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@asynccontextmanager
async def late_relay(target: str, late_s: float) -> AsyncIterator[str]:
    """Relay TCP connections; each byte comes out so much later, both ways."""
    host, _, port = target.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=4096)

        async def write() -> None:
            while True:
                due_s, chunk = await chunks.get()
                await asyncio.sleep(max(due_s - now_s(), 0))
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            while True:
                chunk = await reader.read(65536)
                await chunks.put((now_s() + late_s, chunk))
                if not chunk:
                    break

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        try:
            with suppress(ExceptionGroup, OSError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(pump(reader, far_writer))
                    group.create_task(pump(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_way_that_answers_late_moves_the_guest_all_the_same(lab: Lab):
    config = lab.fleet.directory / "coordinator.toml"
    before = config.read_text()
    guest = await lab.start_guest(plan=Plan(dirty_mib_s=4.0))

    async with late_relay(lab.fleet.tunnel_address("host-b"), LATE_S) as address:
        config.write_text(before.replace(lab.fleet.tunnel_address("host-b"), address))
        try:
            await lab.restart("coordinator")
            outcome = await (await lab.start_move(options=wishes(tunnel=True, bandwidth_mib_s=24, max_downtime_s=2.0))).outcome()
        finally:
            config.write_text(before)
            await lab.restart("coordinator")

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert LATE_S <= seconds_of(outcome.downtime.total) <= 2.0 + MARGIN_S
    assert Decision.CHOICE_ABORT not in [one.choice for one in outcome.progress.decisions]
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
