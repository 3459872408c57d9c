"""An OTLP/gRPC receiver for spans: keeps them, and hands them on to a collector if one is configured.

Source: opentelemetry/proto/collector/trace/v1/trace_service.proto.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import grpc
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from coordinator.traces import Traces

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
FORWARD_TIMEOUT_S: Final = 1.0
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


class TraceReceiver(rpc.TraceServiceServicer):
    """Takes spans."""

    def __init__(self, traces: Traces, forward_to: str) -> None:
        self._traces = traces
        address = forward_to.removeprefix("http://").removeprefix("https://").rstrip("/")
        self._channel: grpc.aio.Channel | None = None
        if address and forward_to.startswith("https://"):
            self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials())
        elif address:
            self._channel = grpc.aio.insecure_channel(address)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on `server`."""
        rpc.add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # the package has no stubs

    async def Export(  # noqa: N802 - the protocol's name
        self, request: pb.ExportTraceServiceRequest, _context: Context
    ) -> pb.ExportTraceServiceResponse:
        """Keep spans; the answer never says no."""
        self._traces.keep(TracesData(resource_spans=request.resource_spans).SerializeToString())
        if self._channel is not None:
            try:
                stub = rpc.TraceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # the package has no stubs
                await stub.Export(request, timeout=FORWARD_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                _log.debug("spans not forwarded", error=error.details())
        return pb.ExportTraceServiceResponse()

    async def close(self) -> None:
        """Close the way to the collector."""
        if self._channel is not None:
            await self._channel.close()
