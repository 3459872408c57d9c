"""Spans around gRPC calls, with the W3C trace context in the metadata.

Our own, because the instrumentation package breaks grpc.aio: a cancelled client task does not cancel its call there. The call is
never awaited here; the span ends in its done callback. No spans for what never ends (Watch...) or is asked all the time (Ping...),
nor for health and reflection; what is asked on a stream has the spans of the call that it stands for: `asking` and `server_span`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc.aio import ClientCallDetails, Metadata
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.rpc.acting import with_order

_UNTRACED: Final = ("Watch", "Relay", "HandOver", "Ping", "ListSpans", "GetTrace")
_tracer = trace.get_tracer("common.rpc")
_propagator: Final = TraceContextTextMapPropagator()


def is_traced(method: str) -> bool:
    """Say whether calls of a method, as `/package.Service/Method`, get spans."""
    service, _, name = method.strip("/").partition("/")
    return not service.startswith(("grpc.", "opentelemetry.")) and not name.startswith(_UNTRACED)


def short_name(method: str) -> str:
    """Return `Service/Method` of `/package.Service/Method`."""
    service, _, name = method.strip("/").partition("/")
    return f"{service.rpartition('.')[2]}/{name}"


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: ClientCallDetails, request: Any) -> Any:
        """Trace a call."""
        return await _traced(continuation, client_call_details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: ClientCallDetails, request: Any) -> Any:
        """Trace a call."""
        return await _traced(continuation, client_call_details, request)


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """Make the interceptors that give each call a span and send the trace context along.

    One object a kind of call: grpc.aio uses an interceptor for the first kind that it finds it to be of. Calls that stream
    requests are the tunnel's, which have no spans.
    """
    return [_UnaryUnary(), _UnaryStream()]


async def _traced(continuation: Any, details: ClientCallDetails, request: Any) -> Any:
    method, details = _text(details.method), with_order(details)
    if not is_traced(method):
        return await continuation(_with_context(details, otel_context.get_current()), request)
    span = _tracer.start_span(short_name(method), kind=SpanKind.CLIENT)
    call = await continuation(_with_context(details, trace.set_span_in_context(span)), request)
    call.add_done_callback(_end(span))
    return call


def _text(method: object) -> str:
    """Return a method's name, which grpc.aio has as bytes and its stubs as text."""
    return method.decode() if isinstance(method, bytes) else str(method)


def _end(span: trace.Span) -> Callable[[Any], None]:
    def done(call: Any) -> None:
        code = _code_of(call)
        if code not in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}:  # who leaves a stream has heard enough
            span.set_status(StatusCode.ERROR, code.name)
        span.end()

    return done


def _code_of(call: Any) -> grpc.StatusCode:
    """Return the code of a call that has ended: then its `code()` has nothing to wait for."""
    asking = call.code()
    try:
        asking.send(None)
    except StopIteration as answer:
        return grpc.StatusCode(answer.value.value)
    asking.close()
    return grpc.StatusCode.UNKNOWN


def _with_context(details: ClientCallDetails, context: otel_context.Context) -> ClientCallDetails:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    if not carrier:
        return details
    metadata = Metadata(*(details.metadata or ()))
    for key, value in carrier.items():
        metadata[key] = value
    return ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


@contextmanager
def asking(method: str) -> Iterator[str]:
    """Make the span of a call that is asked on a stream; yield the W3C trace context to send along."""
    with _tracer.start_as_current_span(short_name(method), kind=SpanKind.CLIENT):
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        yield carrier.get("traceparent", "")


@contextmanager
def server_span(method: str, metadata: Any) -> Iterator[None]:
    """Make the span of a call that is being served, as a child of the caller's."""
    if not is_traced(method):
        yield
        return
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    parent = _propagator.extract(carrier)
    span = _tracer.start_span(short_name(method), parent, kind=SpanKind.SERVER)
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        if trace.get_current_span() is span:  # a stream that its caller left is closed by the event loop, in a context of its own
            otel_context.detach(token)
        span.end()
