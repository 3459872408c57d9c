"""The OTLP receiver: takes spans at once, keeps them, and hands them on when it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from common.identity import Role
from common.rpc.channel import open_channel
from common.rpc.server import Allowed, Service, serve
from common.tasks import OwnedTasks
from coordinator.otlp import SERVICE, TraceReceiver
from coordinator.traces import Traces

TRACE = bytes(range(16))
EVERYBODY = Allowed(frozenset(Role))


def spans(*span_numbers: int) -> list[ResourceSpans]:
    found = [Span(trace_id=TRACE, span_id=number.to_bytes(8), name=f"s{number}") for number in span_numbers]
    return [ResourceSpans(scope_spans=[ScopeSpans(spans=found)])]


def names(kept: Traces) -> list[str]:
    found = TracesData.FromString(kept.of(TRACE.hex()))
    return [span.name for resource in found.resource_spans for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def kept(tmp_path: Path):
    kept = Traces(tmp_path / "t.db", lambda _trace_id: b"")
    yield kept
    kept.close()


@asynccontextmanager
async def receiving(kept: Traces, forward_to: str = "") -> AsyncIterator[grpc.aio.Channel]:
    receiver = TraceReceiver(kept, forward_to)
    async with (
        OwnedTasks() as tasks,
        serve("127.0.0.1:0", None, [Service(SERVICE, receiver.add_to)], allowed=EVERYBODY) as port,
        open_channel(f"127.0.0.1:{port}", None) as channel,
    ):
        tasks.start(receiver.run())
        yield channel
    await receiver.close()


async def export(channel: grpc.aio.Channel, resource_spans: list[ResourceSpans]) -> None:
    stub = trace_service_pb2_grpc.TraceServiceStub(channel)
    await stub.Export(trace_service_pb2.ExportTraceServiceRequest(resource_spans=resource_spans), timeout=5)


async def test_spans_of_others_are_kept(kept: Traces):
    async with receiving(kept) as channel:
        await export(channel, spans(1, 2))

    assert names(kept) == ["s1", "s2"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Another receiver, as a user may have."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[trace_service_pb2.ExportTraceServiceRequest] = asyncio.Queue()

    async def Export(self, request, context):  # noqa: N802 - gRPC names it
        self.received.put_nowait(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def add_to(self, server):
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, server)


async def test_received_spans_are_handed_on_to_the_configured_collector(kept: Traces):
    collector = Collector()
    async with (
        serve("127.0.0.1:0", None, [Service(SERVICE, collector.add_to)], allowed=EVERYBODY) as port,
        receiving(kept, f"http://127.0.0.1:{port}") as channel,
    ):
        await export(channel, spans(7))
        async with asyncio.timeout(5):
            request = await collector.received.get()

    assert request.resource_spans[0].scope_spans[0].spans[0].name == "s7"


async def test_a_dead_collector_holds_nobody_up_and_nothing_is_lost_here(kept: Traces):
    async with receiving(kept, "http://127.0.0.1:1") as channel:
        for number in range(20):
            await export(channel, spans(number))

    assert len(names(kept)) == 20
