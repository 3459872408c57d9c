"""Spans around calls, joined to one trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.trace import TracerProvider

from common.errors import WrongState
from common.rpc import tracing
from common.rpc.status import calls_to
from common.rpc.tracing import is_traced, short_name
from common.telemetry import KEPT_TRACES, SpanBuffer
from ferry.agent.v1.host_pb2 import GetHostRequest
from ferry.agent.v1.migration_pb2 import Migration, PerformMigrationRequest, PerformMigrationResponse
from tests.unit.common.rpc.echo import Echo, echo

_BUFFER = SpanBuffer()
_PROVIDER = TracerProvider()
_PROVIDER.add_span_processor(_BUFFER)


@pytest.fixture(autouse=True)
def _apart(monkeypatch) -> None:
    """Trace with a provider of this module's own: one set for the process would stay for the tests of others."""
    monkeypatch.setattr(tracing, "_tracer", _PROVIDER.get_tracer("t"))


def names(trace_id: int) -> dict[str, str]:
    """Name of each span's parent by the span's own name and kind."""
    data = TracesData.FromString(_BUFFER.spans_of(f"{trace_id:032x}"))
    spans = [span for resource in data.resource_spans for scope in resource.scope_spans for span in scope.spans]
    by_id = {span.span_id: f"{span.name}/{span.kind}" for span in spans}
    return {by_id[span.span_id]: by_id.get(span.parent_span_id, "") for span in spans}


async def test_client_and_server_spans_hang_under_the_caller_s():
    async def inner(_context: Any) -> None:
        with _PROVIDER.get_tracer("t").start_as_current_span("inside"):
            pass

    async with echo(inner) as stub:
        with _PROVIDER.get_tracer("t").start_as_current_span("outside") as outside:
            await stub.GetHost(GetHostRequest(), timeout=5)

    assert names(outside.get_span_context().trace_id) == {
        "outside/1": "",
        "AgentService/GetHost/3": "outside/1",
        "AgentService/GetHost/2": "AgentService/GetHost/3",
        "inside/1": "AgentService/GetHost/2",
    }


async def test_a_stream_that_is_left_ends_its_spans():
    async def hang(_context: Any) -> None:
        raise WrongState("over")

    async with echo(hang) as stub:
        with _PROVIDER.get_tracer("t").start_as_current_span("outside") as outside, pytest.raises(WrongState), calls_to("x"):
            async for _ in stub.PerformMigration(PerformMigrationRequest()):
                pass

    assert "AgentService/PerformMigration/3" in names(outside.get_span_context().trace_id)


async def test_a_stream_that_is_left_while_it_sends_leaves_its_context_where_it_entered_it(monkeypatch, caplog):
    ended = asyncio.Event()

    async def flood(_self: Echo, _request: Any, _context: Any) -> AsyncIterator[PerformMigrationResponse]:
        try:
            while True:
                yield PerformMigrationResponse(migration=Migration(vm_name="x" * 1_000_000))
        finally:
            ended.set()

    monkeypatch.setattr(Echo, "PerformMigration", flood)
    async with echo() as stub:
        call = stub.PerformMigration(PerformMigrationRequest())
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await ended.wait()

    assert [record.message for record in caplog.records] == []


def test_endless_streams_and_checks_have_no_spans():
    assert not is_traced("/ferry.agent.v1.AgentService/WatchMigration")
    assert not is_traced("/grpc.health.v1.Health/Check")
    assert is_traced("/ferry.agent.v1.AgentService/BeginMigration")
    assert short_name("/ferry.agent.v1.AgentService/BeginMigration") == "AgentService/BeginMigration"


def test_the_buffer_keeps_the_newest_traces_and_answers_nonsense_with_nothing():
    buffer = SpanBuffer()
    own = TracerProvider()
    own.add_span_processor(buffer)
    spans = [own.get_tracer("t").start_span(f"s{number}") for number in range(KEPT_TRACES + 1)]
    for span in spans:
        span.end()

    assert buffer.spans_of(f"{spans[0].get_span_context().trace_id:032x}") == b""
    assert buffer.spans_of(f"{spans[-1].get_span_context().trace_id:032x}") != b""
    assert buffer.spans_of("nonsense") == b""
