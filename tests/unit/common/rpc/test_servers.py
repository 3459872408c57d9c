"""What every server does for its callers, and on which addresses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.errors import InvalidRequest, Unreachable, WrongState
from common.identity import Identity, Role
from common.pki import issue
from common.rpc.address import split_address
from common.rpc.channel import open_channel
from common.rpc.server import Allowed, Service, serve
from common.rpc.status import calls_to
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1.host_pb2 import GetHostRequest
from ferry.agent.v1.migration_pb2 import PerformMigrationRequest
from tests.unit.common.rpc.echo import SERVICE, Echo, echo, make_identity, nothing

EVERYBODY = Allowed(frozenset(Role))
PEER = "the agent of host-b"
TIMEOUT_S = 5.0


def add(server: grpc.aio.Server) -> None:
    rpc.add_AgentServiceServicer_to_server(Echo(nothing), server)  # type: ignore[abstract]  # the rest is not called


async def test_every_server_lists_its_services():
    async with (
        serve("127.0.0.1:0", None, [Service(SERVICE, add)], allowed=EVERYBODY) as port,
        open_channel(f"127.0.0.1:{port}", None) as channel,
    ):
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # its stubs know no grpc.aio
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        (answer,) = [answer async for answer in call]

    assert {service.name for service in answer.list_services_response.service} > {SERVICE, "grpc.health.v1.Health"}


async def test_a_server_serves_on_a_unix_socket(tmp_path: Path):
    address = f"unix:{tmp_path}/x.sock"
    async with serve(address, None, [Service(SERVICE, add)], allowed=EVERYBODY) as port, open_channel(address, None) as channel:
        await rpc.AgentServiceStub(channel).GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert port == 0


async def test_a_reader_of_a_stream_that_goes_away_ends_the_work_for_it():
    ended = asyncio.Event()

    async def hang(_context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with echo(hang) as stub, asyncio.timeout(TIMEOUT_S):
        call = stub.PerformMigration(PerformMigrationRequest())
        await anext(aiter(call))

        call.cancel()

        await ended.wait()


async def test_a_server_that_stops_ends_its_open_streams():
    async def hang(_context: Any) -> None:
        await asyncio.Event().wait()

    async with echo(hang) as stub:
        call = stub.PerformMigration(PerformMigrationRequest())
        responses = aiter(call)
        await anext(responses)

    assert await call.code() is not grpc.StatusCode.OK


async def test_an_option_of_the_caller_is_stronger_than_the_usual_one():
    limit = (("grpc.max_receive_message_length", 1),)
    async with echo(options=limit) as stub:
        await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)  # an empty answer fits
        call = stub.PerformMigration(PerformMigrationRequest(), timeout=TIMEOUT_S)

        assert [response async for response in call] != []

    services = [Service(SERVICE, add)]
    async with (
        serve("127.0.0.1:0", None, services, allowed=EVERYBODY, options=limit) as port,
        open_channel(f"127.0.0.1:{port}", None) as channel,
    ):
        request = PerformMigrationRequest(migration_id="longer than one byte")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(rpc.AgentServiceStub(channel).PerformMigration(request, timeout=TIMEOUT_S)))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("127.0.0.1:7701", "127.0.0.1", 7701), ("[::1]:7701", "::1", 7701), ("host-a.example:1", "host-a.example", 1)],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int):
    assert split_address(address) == (host, port)


@pytest.mark.parametrize("address", ["", "host", "host:-1", "::1", "[::1]", "[::1", "2001:db8::7:7701", "a b:1", "[host]:1"])
def test_what_is_no_address_is_refused(address: str):
    with pytest.raises(InvalidRequest, match="host:port is wanted"):
        split_address(address)


# certificates


async def test_a_server_whose_certificate_is_for_another_address_is_not_believed(tmp_path: Path):
    client = make_identity(tmp_path, "ann", Role.OPERATOR)
    issue(tmp_path / "ca", tmp_path / "far", "far", Role.AGENT, ["192.0.2.1"])
    async with echo(server=Identity.in_directory(tmp_path / "far"), client=client) as stub:
        with pytest.raises(Unreachable, match="its certificate is not for this address"), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)


async def test_a_caller_with_certificate_is_told_when_the_server_has_none(tmp_path: Path):
    async with echo(server=None, client=make_identity(tmp_path, "ann", Role.OPERATOR)) as stub:
        with pytest.raises(Unreachable, match="certificate"), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)


async def test_a_stream_is_refused_like_a_call(tmp_path: Path):
    server, client = make_identity(tmp_path, "host-b", Role.AGENT), make_identity(tmp_path, "eve", Role.VIEWER)
    async with echo(server=server, client=client, allowed=frozenset({Role.OPERATOR})) as stub:
        with pytest.raises(InvalidRequest, match="certificate says viewer"), calls_to(PEER):
            await anext(aiter(stub.PerformMigration(PerformMigrationRequest(), timeout=TIMEOUT_S)))


async def test_a_missing_certificate_stops_a_server_with_its_path(tmp_path: Path):
    with pytest.raises(WrongState, match=r"ca\.pem: No such file"):
        async with serve("127.0.0.1:0", Identity.in_directory(tmp_path), [], allowed=EVERYBODY):
            pass
