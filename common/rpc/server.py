"""Serving gRPC: certificates, roles, errors, spans, health and reflection, alike in every process."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from common.certificate import check_identity, expiry_warning
from common.errors import Bug, FerryError, WrongState
from common.identity import Identity, Role
from common.rpc.address import check_plain_text_allowed
from common.rpc.channel import MAX_MESSAGE_BYTES
from common.rpc.malformed import Malformed, lenient, understood
from common.rpc.peer import peer
from common.rpc.status import code_of, status_of
from common.rpc.tracing import server_span, short_name
from common.storage import find_failure

STOP_GRACE_S: Final = 1.0
# Of one connection: an agent's or coordinator's watches, or a tunnel's transfers, of which a migration has 256 at most.
MAX_CONCURRENT_STREAMS: Final = 1000
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
_KINDS: Final = ("unary_unary", "stream_unary", "stream_stream", "unary_stream")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Service:
    """One service of a server.

    Attributes:
        name: full name, as `ferry.agent.v1.AgentService`.
        add: adds it to a server.
        interceptor: sees each call before it is checked, and its end.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    interceptor: grpc.aio.ServerInterceptor | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may call what; on plain text, which is loopback, everybody may call everything.

    Attributes:
        default: roles for every method that `methods` does not name.
        methods: roles by the bare name of a method.
    """

    default: frozenset[Role]
    methods: Mapping[str, frozenset[Role]] = field(default_factory=dict)

    def roles(self, method: str) -> frozenset[Role]:
        """Return the roles that may call `/package.Service/Method`."""
        return self.methods.get(method.rpartition("/")[2], self.default)


@asynccontextmanager
async def serve(  # noqa: PLR0913 -- what an operator may choose
    listen: str,
    identity: Identity | None,
    services: Sequence[Service],
    *,
    allowed: Allowed,
    options: Sequence[tuple[str, int]] = (),
    reflects: bool = True,
) -> AsyncIterator[int]:
    """Serve on `host:port` or `unix:/path` while the context is open; yield the port (0 for a UNIX socket).

    Args:
        listen: where.
        identity: this process's certificate; None for plain text, which is for loopback and UNIX sockets only.
        services: what to serve beside health and reflection.
        allowed: who may call what.
        options: gRPC channel arguments beside ours, which they override.
        reflects: whether clients may ask which services and messages there are.

    Raises:
        InvalidRequest: plain text on an address of the network.
        WrongState: the address is taken, or a certificate file cannot be read.
    """
    is_plain = identity is None or listen.startswith("unix:")
    everything = (*options, *_OPTIONS)  # gRPC takes the first of two
    outer = [service.interceptor for service in services if service.interceptor is not None]
    server = grpc.aio.server(interceptors=[*outer, _Edge(allowed, is_plain=is_plain)], options=everything)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for service in services:
        service.add(server)
        await checks.set(service.name, health_pb2.HealthCheckResponse.SERVING)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    names = [service.name for service in services]
    if reflects:
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = _bind(server, listen, identity)
    await server.start()
    try:
        yield 0 if listen.startswith("unix:") else port
    finally:
        await checks.enter_graceful_shutdown()
        await server.stop(STOP_GRACE_S)


def _bind(server: grpc.aio.Server, listen: str, identity: Identity | None) -> int:
    try:
        if identity is None or listen.startswith("unix:"):
            check_plain_text_allowed(listen)
            return server.add_insecure_port(listen)
        expiry = expiry_warning(check_identity(identity), identity.certificate)
        if expiry:
            _log.warning("certificate", text=expiry)
        ca, certificate, key = identity.read()
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        return server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise WrongState(
            f"address {listen} cannot be served on: it is taken, or not of this host", reason="ADDRESS_TAKEN"
        ) from error


class _Edge(grpc.aio.ServerInterceptor):
    """Checks the caller's role, makes the span, and turns errors into statuses."""

    def __init__(self, allowed: Allowed, *, is_plain: bool) -> None:
        self._allowed = allowed
        self._is_plain = is_plain

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Put the edge around a method's handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler
        if handler.request_deserializer is not None:
            handler = handler._replace(request_deserializer=lenient(handler.request_deserializer))
        if method.startswith("/grpc."):
            return _wrap(handler, _plainly)
        metadata = handler_call_details.invocation_metadata

        def around(context: Any) -> AbstractAsyncContextManager[None]:
            return self._around(method, metadata, context)

        return _wrap(handler, around)

    @asynccontextmanager
    async def _around(self, method: str, metadata: Any, context: Any) -> AsyncIterator[None]:
        with server_span(method, metadata):
            await self._check_role(method, context)
            try:
                yield
            except FerryError as error:
                if isinstance(error, Bug):
                    await _abort_with_bug(context, method, error)
                await _refuse(context, method, error)
            except (grpc.aio.AbortError, GeneratorExit):
                raise
            except Exception as error:  # noqa: BLE001 - the outermost edge: a stranger's exception must not reach a user as a traceback
                failure = find_failure(error)
                if failure is None:
                    await _abort_with_bug(context, method, error)
                else:
                    await _refuse(context, method, failure)

    async def _check_role(self, method: str, context: Any) -> None:
        if self._is_plain:
            return
        caller, roles = peer(context), self._allowed.roles(method)
        if caller.role not in roles:
            wanted = ", ".join(sorted(role.value for role in roles))
            held = caller.role.value if caller.role else "no role"
            _log.warning("caller not allowed", method=short_name(method), caller=caller.name, role=held, address=caller.address)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"{short_name(method)} is for {wanted}; the caller's certificate says {held}"
            )


async def _refuse(context: Any, method: str, error: FerryError) -> None:
    trace.get_current_span().set_status(trace.StatusCode.ERROR, error.text)
    _log.info("request refused", method=short_name(method), code=code_of(error).name, reason=error.reason, error=error.text)
    await context.abort_with_status(status_of(error))


@asynccontextmanager
async def _plainly(context: Any) -> AsyncIterator[None]:
    """Answer what everybody may ask, and refuse what is no request."""
    try:
        yield
    except Malformed as error:
        await context.abort_with_status(status_of(error))


async def _abort_with_bug(context: Any, method: str, error: Exception) -> None:
    trace.get_current_span().set_status(trace.StatusCode.ERROR, type(error).__name__)
    trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    _log.error("bug", method=short_name(method), exc_info=error)
    told = Bug(f"a mistake of Ferry's own; the log of the process has more, trace {trace_id}", trace=trace_id)
    await context.abort_with_status(status_of(told))


def _wrap(handler: Any, around: Callable[[Any], AbstractAsyncContextManager[None]]) -> Any:
    if handler.response_streaming and inspect.isasyncgenfunction(handler.stream_stream or handler.unary_stream):
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Any) -> None:
            # Not a generator: grpc.aio leaves one whose caller is gone to the garbage collector, and so to another context.
            async with around(context), aclosing(behaviour(understood(request), context)) as responses:
                async for response in responses:
                    await context.write(response)

        kind = "stream_stream" if handler.request_streaming else "unary_stream"
        return handler._replace(**{kind: stream})
    kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
    work = getattr(handler, kind)

    async def single(request: Any, context: Any) -> Any:
        async with around(context):
            return await work(understood(request), context)

    return handler._replace(**{kind: single})
