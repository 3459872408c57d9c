"""Spans and logs of one process. Telemetry decides nothing: what cannot be exported is dropped.

Finished spans stay in a bounded buffer, from which the coordinator collects those of a migration; with an endpoint they go to an
OTLP/gRPC collector as well, whose exporter is loaded only then: it takes 5 MB. Logs are JSON lines on stderr that carry the ids of
trace and span.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from common.errors import InvalidRequest

KEPT_TRACES: Final = 200
# About 3 kB each until they are asked for, 0.2 kB from then on.
KEPT_SPANS: Final = 2000
KEPT_SPANS_PER_TRACE: Final = 5000
EXPORT_TIMEOUT_S: Final = 1


def decode_traces(traces_data: bytes) -> TracesData:
    """Read a serialised opentelemetry.proto.trace.v1.TracesData.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return TracesData.FromString(traces_data)
    except DecodeError as error:
        raise InvalidRequest(f"spans: {len(traces_data)} bytes that are no TracesData", reason="SPANS_MALFORMED") from error


@dataclass(slots=True)
class _KeptTrace:
    """The first spans of a trace: serialised those that were asked for, and the later ones as they came."""

    packed: bytes = b""
    packed_count: int = 0
    spans: list[ReadableSpan] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.packed_count + len(self.spans)

    def pack(self) -> bytes:
        """Serialise what is not yet; a TracesData with another one after it is one with the spans of both."""
        if self.spans:
            self.packed += TracesData(resource_spans=encode_spans(self.spans).resource_spans).SerializeToString()
            self.packed_count += len(self.spans)
            self.spans = []
        return self.packed


class SpanBuffer(SpanProcessor):
    """Keeps finished spans by trace: the traces that grew last, the last one of all in any case, and of each the first spans."""

    def __init__(self) -> None:
        self._traces: OrderedDict[int, _KeptTrace] = OrderedDict()
        self._count = 0
        self._lock = Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            kept = self._traces.setdefault(context.trace_id, _KeptTrace())
            self._traces.move_to_end(context.trace_id)
            if kept.count < KEPT_SPANS_PER_TRACE:
                kept.spans.append(span)
                self._count += 1
            while len(self._traces) > 1 and (len(self._traces) > KEPT_TRACES or self._count > KEPT_SPANS):
                _, forgotten = self._traces.popitem(last=False)
                self._count -= forgotten.count

    def spans_of(self, trace_id: str) -> bytes:
        """Return the kept spans of a trace: an opentelemetry.proto.trace.v1.TracesData, serialised; empty when there are none."""
        try:
            wanted = int(trace_id, 16)
        except ValueError:
            return b""
        with self._lock:
            kept = self._traces.get(wanted)
            return b"" if kept is None else kept.pack()


@contextmanager
def telemetry(service: str, host: str, *, otlp_endpoint: str = "", log_level: str = "info") -> Iterator[SpanBuffer]:
    """Set up spans and logs for this process; once.

    Args:
        service: `service.name`, as `ferry-agent`.
        host: `host.name`.
        otlp_endpoint: collector for spans, as `http://host:4317`; empty exports nothing.
        log_level: debug, info, warning or error.
    """
    _configure_logs(log_level)
    provider = TracerProvider(resource=Resource.create({"service.name": service, "host.name": host}))
    buffer = SpanBuffer()
    provider.add_span_processor(buffer)
    if otlp_endpoint:
        provider.add_span_processor(_exporting(otlp_endpoint))
    trace.set_tracer_provider(provider)
    try:
        yield buffer
    finally:
        provider.shutdown()


def _exporting(endpoint: str) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - see above

    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=EXPORT_TIMEOUT_S)
    return BatchSpanProcessor(exporter, schedule_delay_millis=1000)


def _configure_logs(level: str) -> None:
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_trace,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format='{"level":"%(levelname)s","event":"%(name)s: %(message)s"}'
    )


def _add_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event
