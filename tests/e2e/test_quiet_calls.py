"""A call on which nothing happens for long is not ended by the pings that keep it alive."""

from __future__ import annotations

import asyncio

import pytest
from grpc_health.v1 import health_pb2

from tests.e2e.lab import Lab

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(120)]

# A client pings every 10 s; with its own limit gRPC ends the connection at the third ping that it finds too early.
QUIET_S = 45.0


@pytest.mark.parametrize("server", ["host-a", "coordinator"])
async def test_a_stream_without_news_stays_open(server, lab: Lab):
    watch = lab.channel(server).unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    states = watch(health_pb2.HealthCheckRequest())
    await states.read()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            await states.read()
