"""The command's own span: the root of a migration's trace.

Export is best effort: a command never fails, nor waits for more than a second or two, because nobody keeps its span.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.errors import FerryError
from common.rpc.status import calls_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Span

    from coordinator.cli.link import Coordinator

SERVICE = "ferry"
EXPORT_TIMEOUT_S = 1.0
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


class CommandTrace:
    """Keeps the spans of one command until they are handed over."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        resource = Resource({"service.name": SERVICE, "host.name": socket.gethostname()})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self._tracer = self._provider.get_tracer("ferry")

    @contextlib.contextmanager
    def span(self, name: str, attributes: Mapping[str, str]) -> Iterator[Span]:
        """Run what is inside under a root span; calls made inside carry it on."""
        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=dict(attributes)) as span:
            yield span

    async def hand_over(self, coordinator: Coordinator) -> None:
        """Give the finished spans to the coordinator, and to a collector if the environment names one."""
        spans = self._kept.get_finished_spans()
        if not spans:
            return
        with contextlib.suppress(FerryError), calls_to(coordinator.title):
            stub = TraceServiceStub(coordinator.channel)  # type: ignore[no-untyped-call]  # generated without types
            await stub.Export(encode_spans(spans), timeout=EXPORT_TIMEOUT_S)
        if os.environ.get(ENDPOINT_VARIABLE):
            await asyncio.to_thread(_export, spans)


def mark_failed(span: Span, text: str) -> None:
    """Say in the span that the command did not do what it was asked."""
    span.set_status(StatusCode.ERROR, text)


def _export(spans: Sequence[ReadableSpan]) -> None:
    """Send spans where the environment says; the exporter keeps its complaints to itself."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 -- rarely needed, slow

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S)
    exporter.export(spans)
    exporter.shutdown()
