"""An OTLP/gRPC receiver for spans: keeps them, and hands them on to a collector if one is configured.

Source: opentelemetry/proto/collector/trace/v1/trace_service.proto.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeAlias

import grpc
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from common.errors import InvalidRequest
from coordinator.traces import Traces

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
FORWARD_TIMEOUT_S: Final = 1.0
_NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)
MAX_WAITING_COUNT: Final = 200
MAX_WAITING_BYTES: Final = 8 << 20
MAX_REQUEST_BYTES: Final = 4 << 20
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


class TraceReceiver(rpc.TraceServiceServicer):
    """Takes spans. `run` has to run for them to be handed on."""

    def __init__(self, traces: Traces, forward_to: str) -> None:
        self._traces = traces
        self._waiting: asyncio.Queue[pb.ExportTraceServiceRequest] = asyncio.Queue(MAX_WAITING_COUNT)
        self._waiting_bytes = 0
        address = forward_to.removeprefix("http://").removeprefix("https://").rstrip("/")
        self._channel: grpc.aio.Channel | None = None
        if address and forward_to.startswith("https://"):
            self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=_NO_PROXY)
        elif address:
            self._channel = grpc.aio.insecure_channel(address, options=_NO_PROXY)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on `server`."""
        rpc.add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # the package has no stubs

    async def Export(  # noqa: N802 - the protocol's name
        self, request: pb.ExportTraceServiceRequest, _context: Context
    ) -> pb.ExportTraceServiceResponse:
        """Keep spans; the answer comes at once and says no to what is too much in one request alone.

        Raises:
            InvalidRequest: that is larger than any exporter makes it.
        """
        size_bytes = request.ByteSize()
        if size_bytes > MAX_REQUEST_BYTES:
            raise InvalidRequest(
                f"spans: {size_bytes} bytes in one request, {MAX_REQUEST_BYTES} is the most", reason="REQUEST_TOO_LARGE"
            )
        self._traces.keep(TracesData(resource_spans=request.resource_spans).SerializeToString())
        if self._channel is not None:
            if self._waiting.full() or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
                _log.warning("spans not handed on", error="the collector is too slow")
            else:
                self._waiting.put_nowait(request)
                self._waiting_bytes += size_bytes
        return pb.ExportTraceServiceResponse()

    async def run(self) -> None:
        """Hand spans on to the collector, until cancelled."""
        if self._channel is None:
            return
        stub = rpc.TraceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # the package has no stubs
        while True:
            request = await self._waiting.get()
            self._waiting_bytes -= request.ByteSize()
            try:
                await stub.Export(request, timeout=FORWARD_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                _log.debug("spans not handed on", error=error.details())

    async def close(self) -> None:
        """Close the way to the collector."""
        if self._channel is not None:
            await self._channel.close()
