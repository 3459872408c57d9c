"""Wishes that cannot be fulfilled: each with a clear message, and nothing changed."""

from __future__ import annotations

import shutil
import socket
from contextlib import ExitStack
from uuid import uuid4

import grpc
import pytest

from common.errors import FerryError
from common.identity import Role
from common.pki import init_authority, issue
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from deploy.lab.network import TwoHosts
from ferry.agent.v1 import vm_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import STOPPED, Lab, refused
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.waiting import until_equal
from tests.guests.console import Console

SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)


async def test_an_unknown_vm_is_refused(lab: Lab):
    with refused("VM_NOT_FOUND", "nobody", "host-a", "host-b"):
        await lab.start_move("nobody")


async def test_an_unknown_host_is_refused(lab: Lab):
    guest = await lab.start_guest()

    await assert_refused(lab, guest, "HOST_UNKNOWN", "host-z", "host-a", to="host-z")


async def test_a_move_to_where_the_guest_is_is_refused(lab: Lab):
    guest = await lab.start_guest()

    with refused("SAME_HOST", "host-a", guest.name):
        await lab.start_move(guest.name, "host-a")
    await lab.assert_only_on("host-a", guest)


async def test_a_vm_that_does_not_run_is_refused(lab: Lab):
    uuid = uuid4()
    await lab.define("host-a", domain(Plan(), lab.directory, uuid=uuid))
    guest = Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory)

    await assert_refused(lab, guest, "VM_NOT_RUNNING", "web", "--offline", state=STOPPED)


async def test_a_guest_with_a_device_of_the_host_is_refused(lab: Lab):
    shared = lab.directory / "shared"
    shared.mkdir()
    mount = f"<filesystem type='mount'><source dir='{shared}'/><target dir='tag'/></filesystem>"
    guest = await lab.start_guest(plan=Plan(inside=mount))

    await assert_refused(lab, guest, "VM_CANNOT_MIGRATE", "web", str(shared))


async def test_a_second_job_on_a_busy_vm_is_refused_and_the_first_goes_on(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")

    with refused("VM_BUSY", guest.name, move.id):
        await lab.start_move(guest.name)
    with refused("VM_BUSY", guest.name, move.id):
        await lab.agents["host-a"].StopVm(vm_pb2.StopVmRequest(vm=guest.name, force=True))
    with refused("VM_BUSY", guest.name, move.id):
        await lab.agents["host-b"].StopVm(vm_pb2.StopVmRequest(vm=guest.name, force=True))

    await move.update(bandwidth_mib_s=0)
    outcome = await move.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize(
    ("uri", "reason", "word"),
    [
        ("udp:127.0.0.1:5000", "MIGRATE_URI_INVALID", "udp"),
        ("127.0.0.1", "MIGRATE_URI_INVALID", "no scheme"),
        ("tcp:", "MIGRATE_URI_INVALID", "no host"),
        ("tcp:[127.0.0.1]:5000", "MIGRATE_URI_INVALID", "IPv6"),
        ("tcp:::1:5000", "MIGRATE_URI_INVALID", "tcp:::1:5000"),
        ("tcp:127.0.0.1:http", "MIGRATE_URI_INVALID", "http"),
        ("tcp:127.0.0.1:0", "PORT_OUT_OF_RANGE", "0"),
        ("tcp:127.0.0.1:65536", "PORT_OUT_OF_RANGE", "65536"),
        ("tcp:192.0.2.1", "ADDRESS_NOT_HERE", "192.0.2.1"),
        ("tcp:no-such-host.invalid", "HOST_UNKNOWN", "no-such-host.invalid"),
    ],
)
async def test_a_wrong_migrate_uri_is_refused(uri, reason, word, lab: Lab):
    guest = await lab.start_guest()

    await assert_refused(lab, guest, reason, word, options=wishes(migrate_uri=uri))


@pytest.mark.parametrize("uri", ["tcp:localhost", "tcp://127.0.0.1", "tcp:[::1]"])
async def test_a_loopback_address_is_taken_where_both_agents_share_one_network(uri, lab: Lab):
    guest = await lab.start_guest()

    outcome = await (await lab.start_move(options=wishes(migrate_uri=uri))).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)


@pytest.mark.root
@pytest.mark.xdist_group("network")
@pytest.mark.parametrize(
    ("uri", "words"), [("tcp:localhost", ("localhost", "resolves to")), ("tcp:127.0.0.1:5000", ("127.0.0.1",))]
)
async def test_a_name_that_resolves_to_loopback_is_refused_between_two_hosts(uri, words, lab_apart: Lab, network: TwoHosts):
    guest = await lab_apart.start_guest()

    await assert_refused(lab_apart, guest, "ADDRESS_IS_LOOPBACK", *words, options=wishes(migrate_uri=uri))


async def test_a_port_that_is_taken_is_refused(lab: Lab):
    guest = await lab.start_guest()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await assert_refused(lab, guest, "PORT_TAKEN", str(port), options=wishes(migrate_uri=f"tcp:127.0.0.1:{port}"))


async def test_a_pool_of_ports_that_is_exhausted_is_refused(lab: Lab):
    guest = await lab.start_guest()
    pool = lab.fleet.ports.pool(1)

    with ExitStack() as stack:
        for port in range(pool.first, pool.last + 1):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        await assert_refused(lab, guest, "PORT_POOL_EXHAUSTED", str(pool.first), str(pool.last), "port_max")

    outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error


@pytest.mark.parametrize(
    ("options", "reason", "word"),
    [
        (wishes(plain=True, tunnel=True), "OPTIONS_CONFLICT", "tunnel"),
        (wishes(tunnel=True, migrate_uri="tcp:127.0.0.1:5000"), "OPTIONS_CONFLICT", "migrate-uri"),
        (wishes(multifd=256), "CHANNEL_COUNT_OUT_OF_RANGE", "256"),
        (wishes(multifd=-1), "CHANNEL_COUNT_OUT_OF_RANGE", "-1"),
        (wishes(max_downtime_s=0), "DOWNTIME_OUT_OF_RANGE", "0 s"),
        (wishes(max_downtime_s=2001), "DOWNTIME_OUT_OF_RANGE", "2001"),
        (wishes(bandwidth_mib_s=-1), "BANDWIDTH_OUT_OF_RANGE", "-1048576"),
        (wishes(destination_name="a b/c"), "VALUE_INVALID", "a b/c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_wishes_out_of_range_or_at_odds_are_refused(options, reason, word, lab: Lab):
    guest = await lab.start_guest()

    await assert_refused(lab, guest, reason, word, options=options)


async def test_a_destination_whose_agent_is_down_is_refused(lab: Lab):
    guest = await lab.start_guest()
    await lab.kill("agent-b")

    with refused("PEER_UNREACHABLE", "host-b", lab.fleet.agent_address("host-b")):
        await lab.start_move()

    await lab.restart("agent-b")
    await lab.wait_reachable()
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_destination_whose_tunnel_is_down_is_refused(lab: Lab):
    guest = await lab.start_guest()
    await lab.kill("tunnel-b")

    await assert_refused(lab, guest, "TUNNEL_NOT_RUNNING", "tunnel", "host-b", options=wishes(tunnel=True))

    await lab.restart("tunnel-b")


async def test_a_destination_with_a_certificate_of_another_authority_is_refused(lab: Lab):
    guest = await lab.start_guest()
    process, pki, own = lab.fleet.processes["agent-b"], lab.fleet.pki("host-b"), lab.directory / "own"
    other = lab.directory / "other"
    shutil.copytree(pki, own)
    init_authority(other / "ca")
    issue(other / "ca", other / "host-b", "host-b", Role.AGENT, ["127.0.0.1"])

    try:
        process.stop()
        shutil.copytree(other / "host-b", pki, dirs_exist_ok=True)
        process.start()
        async with grpc.aio.secure_channel(lab.fleet.agent_address("host-b"), _credentials(other)) as channel:
            await channel.channel_ready()
        await until_equal(lambda: _why_refused(lab), ("PEER_UNREACHABLE", True))
    finally:
        shutil.copytree(own, pki, dirs_exist_ok=True)
        await lab.restart("agent-b")
        await lab.wait_reachable()
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def _why_refused(lab: Lab) -> tuple[str, bool]:
    """Say why a move is refused; for a moment that is what was wrong with the connection before."""
    with pytest.raises(FerryError) as caught:
        await lab.start_move()
    return caught.value.reason, "certificates do not fit" in caught.value.text


async def test_a_client_without_a_certificate_is_told_so(lab: Lab):
    guest = await lab.start_guest()
    request = pb.StartMigrationRequest(vm=guest.name, destination_host="host-b")

    async with open_channel(lab.fleet.coordinator_address, None) as channel:
        with refused("PEER_UNREACHABLE", "certificate"):
            await rpc.CoordinatorServiceStub(channel).StartMigration(request)
    await lab.assert_only_on("host-a", guest)


async def test_a_viewer_may_look_and_not_move(lab: Lab):
    guest = await lab.start_guest()
    pki = lab.directory / "viewer"
    issue(lab.fleet.directory / "pki" / "ca", pki, "viewer", Role.VIEWER, [])
    identity = type(lab.fleet.identity("operator")).in_directory(pki)  # type: ignore[union-attr]

    async with open_channel(lab.fleet.coordinator_address, identity) as channel:
        stub = rpc.CoordinatorServiceStub(channel)
        with calls_to("the coordinator"):
            await stub.ListMigrations(pb.ListMigrationsRequest())
        with refused("NOT_ALLOWED", "viewer"):
            await stub.StartMigration(pb.StartMigrationRequest(vm=guest.name, destination_host="host-b"))
    await lab.assert_only_on("host-a", guest)


def _credentials(directory) -> grpc.ChannelCredentials:
    files = [(directory / "host-b" / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
    return grpc.ssl_channel_credentials(*files)
