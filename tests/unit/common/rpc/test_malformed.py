"""What is no message of its type is refused like any other request: after the role, with a reason, in one line of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from common.identity import Identity, Role
from common.rpc.audit import Audit, Call
from common.rpc.channel import open_channel
from common.rpc.server import Allowed, Service, serve
from common.rpc.status import error_of
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from tests.unit.common.rpc.echo import SERVICE, Echo, make_identity, nothing

TIMEOUT_S = 5.0
NO_MESSAGE = (b"\xff\xff\xff\xff", b"\x0a\x05x", b"\x0b" * 200_000)


@asynccontextmanager
async def raw_channel(
    told: list[Call], server: Identity | None = None, client: Identity | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve the echo on the loopback, audited for operators only; yield a channel for calls with raw bytes."""

    class Streaming(Echo):
        async def HandOver(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for _ in request_iterator:
                yield None

    def add(grpc_server: grpc.aio.Server) -> None:
        rpc.add_AgentServiceServicer_to_server(Streaming(nothing), grpc_server)  # type: ignore[abstract]  # the rest is not called

    service = Service(SERVICE, add, Audit(told.append, ["StartVm"]))
    async with serve("127.0.0.1:0", server, [service], allowed=Allowed(frozenset({Role.OPERATOR}))) as port:
        channel = open_channel(f"127.0.0.1:{port}", client)
        try:
            yield channel
        finally:
            await channel.close()


async def refusal(channel: grpc.aio.Channel, method: str, content: bytes) -> grpc.aio.AioRpcError:
    raw: Any = channel.unary_unary(method)
    call = raw(content, timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("content", NO_MESSAGE, ids=["varint", "cut short", "deep"])
async def test_a_malformed_request_is_an_invalid_argument_with_a_reason(content: bytes, capfd: pytest.CaptureFixture[str]):
    told: list[Call] = []
    async with raw_channel(told) as channel:
        with capture_logs() as logs:
            error = await refusal(channel, f"/{SERVICE}/GetHost", content)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"the request is {len(content)} bytes that are no message of its type"
    assert error_of(error, "peer").reason == "REQUEST_MALFORMED"
    assert [line["event"] for line in logs] == ["request refused"]
    assert "Traceback" not in capfd.readouterr().err
    assert [(call.method, call.reason) for call in told] == [("GetHost", "REQUEST_MALFORMED")]


async def test_the_role_is_checked_first(tmp_path: Path):
    server, viewer = (make_identity(tmp_path, role.value, role) for role in (Role.AGENT, Role.VIEWER))
    told: list[Call] = []
    async with raw_channel(told, server, viewer) as channel:
        error = await refusal(channel, f"/{SERVICE}/GetHost", NO_MESSAGE[0])

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [call.reason for call in told] == ["NOT_ALLOWED"]


async def test_a_stream_is_refused_where_the_nonsense_comes(capfd: pytest.CaptureFixture[str]):
    async with raw_channel([]) as channel:
        raw: Any = channel.stream_stream(f"/{SERVICE}/HandOver")
        call = raw(timeout=TIMEOUT_S)
        await call.write(NO_MESSAGE[0])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"])
async def test_health_takes_no_nonsense_either(method: str, capfd: pytest.CaptureFixture[str]):
    async with raw_channel([]) as channel:
        error = await refusal(channel, method, NO_MESSAGE[0])

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in capfd.readouterr().err
