"""Errors, roles and certificates over real connections."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import Bug, Busy, Expired, FerryError, InvalidRequest, NotFound, Unreachable, WrongState
from common.identity import Role
from common.rpc.channel import open_channel
from common.rpc.peer import peer
from common.rpc.server import Allowed, serve
from common.rpc.status import calls_to
from ferry.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from ferry.agent.v1.host_pb2 import GetHostRequest
from ferry.agent.v1.migration_pb2 import PerformMigrationRequest
from tests.unit.common.rpc.echo import echo, make_identity, nothing

PEER = "the agent of host-b at 127.0.0.1:1"
TIMEOUT_S = 5.0


@pytest.mark.parametrize("category", [InvalidRequest, NotFound, WrongState, Busy, Unreachable, Expired])
async def test_an_error_arrives_as_it_was_raised(category: type[FerryError]):
    async def fail(_context: Any) -> None:
        raise category("port 49152 is taken", reason="PORT_TAKEN", port=49152)

    async with echo(fail) as stub:
        with pytest.raises(category) as raised, calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert (raised.value.text, raised.value.reason, raised.value.facts) == ("port 49152 is taken", "PORT_TAKEN", {"port": "49152"})


async def test_an_error_of_a_stream_arrives_too():
    async def fail(_context: Any) -> None:
        raise WrongState("too late", reason="TOO_LATE")

    async with echo(fail) as stub:
        with pytest.raises(WrongState, match="too late"), calls_to(PEER):
            async for _ in stub.PerformMigration(PerformMigrationRequest()):
                pass


async def test_a_mistake_of_ours_is_told_without_its_text():
    async def fail(_context: Any) -> None:
        raise KeyError("a secret")

    async with echo(fail) as stub:
        with pytest.raises(Bug) as raised, calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert "secret" not in raised.value.text
    assert "trace" in raised.value.facts


async def test_a_peer_that_does_not_answer_in_time_is_named():
    async def hang(_context: Any) -> None:
        await asyncio.Event().wait()

    async with echo(hang) as stub:
        with pytest.raises(Expired, match=r"host-b at 127\.0\.0\.1:1 did not answer in time"), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=0.05)


async def test_nobody_listening_is_told_as_that():
    channel = open_channel("127.0.0.1:9", None)
    with pytest.raises(Unreachable, match="connection refused; is it running") as raised, calls_to(PEER):
        await AgentServiceStub(channel).GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert raised.value.reason == "PEER_UNREACHABLE"
    await channel.close()


async def test_a_caller_is_known_by_its_certificate(tmp_path: Path):
    seen = []

    async def look(context: Any) -> None:
        seen.append(peer(context))

    server, client = make_identity(tmp_path, "host-b", Role.AGENT), make_identity(tmp_path, "ann", Role.OPERATOR)
    async with echo(look, server=server, client=client) as stub:
        await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert (seen[0].role, seen[0].name) == (Role.OPERATOR, "ann")


async def test_a_role_that_may_not_call_is_refused_by_name(tmp_path: Path):
    server, client = make_identity(tmp_path, "host-b", Role.AGENT), make_identity(tmp_path, "eve", Role.VIEWER)
    async with echo(server=server, client=client, allowed=frozenset({Role.OPERATOR})) as stub:
        with pytest.raises(InvalidRequest, match="is for operator; the caller's certificate says viewer") as raised, calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)

    assert raised.value.reason == "NOT_ALLOWED"


async def test_a_certificate_of_another_authority_is_told_as_that(tmp_path: Path):
    (tmp_path / "other").mkdir()
    server, client = make_identity(tmp_path, "host-b", Role.AGENT), make_identity(tmp_path / "other", "ann", Role.OPERATOR)
    async with echo(server=server, client=client) as stub:
        with pytest.raises(Unreachable, match="certificate"), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)


async def test_a_client_without_a_certificate_is_told_so(tmp_path: Path):
    async with echo(server=make_identity(tmp_path, "host-b", Role.AGENT)) as stub:
        with pytest.raises(Unreachable, match="certificate"), calls_to(PEER):
            await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)


@pytest.mark.parametrize("address", ["192.0.2.7:7701", "0.0.0.0:7701", "[2001:db8::7]:7701"])
async def test_plain_text_is_refused_off_the_loopback(address: str):
    with pytest.raises(InvalidRequest, match="plain text is for loopback only"):
        open_channel(address, None)
    with pytest.raises(InvalidRequest, match="plain text is for loopback only"):
        async with serve(address, None, [], allowed=Allowed(frozenset())):
            pass


@pytest.mark.parametrize("address", ["7701", "host:", "host:x", ":7701", "host:99999"])
async def test_an_address_that_is_none_is_refused(address: str):
    with pytest.raises(InvalidRequest, match="host:port is wanted"):
        open_channel(address, None)


async def test_a_taken_address_is_told_as_that():
    async with serve("127.0.0.1:0", None, [], allowed=Allowed(frozenset())) as port:
        with pytest.raises(WrongState, match=f"127.0.0.1:{port} cannot be served on"):
            async with serve(f"127.0.0.1:{port}", None, [], allowed=Allowed(frozenset())):
                pass


async def test_a_cancelled_client_cancels_the_call():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(_context: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with echo(hang) as stub, asyncio.timeout(TIMEOUT_S):
        async with asyncio.TaskGroup() as group:

            async def call() -> None:
                await stub.GetHost(GetHostRequest())

            task = group.create_task(call())
            await begun.wait()
            task.cancel()
        await ended.wait()


async def test_every_server_answers_for_its_health():
    async with serve("127.0.0.1:0", None, [], allowed=Allowed(frozenset())) as port:
        channel = open_channel(f"127.0.0.1:{port}", None)
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs are of the sync API
        answer = await check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        await channel.close()

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_what_works_costs_nothing_of_all_this():
    async with echo(nothing) as stub:
        await stub.GetHost(GetHostRequest(), timeout=TIMEOUT_S)
