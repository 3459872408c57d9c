"""Closing a session, a killed tunnel and a silent network all end QEMU's connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from agent.tunnel.app import Settings, tunnel
from agent.tunnel.client import TunnelClient
from tests.unit.agent.tunnel.fakes import LOOPBACK, SESSION, End, Pair, pair

MIB = 1024 * 1024
AT_ONCE_S = 0.1
STALL_S = 0.2
# Keepalive as quick as a test wants it: a BDP probe goes out with the first data, and must be answered.
QUICK_PING = (("grpc.http2.bdp_probe", 1), ("grpc.http2.ping_timeout_ms", 500))


async def stall(source: End) -> None:
    """Write until nothing goes any more."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(STALL_S):
            await source.send(bytes(64 * MIB))


async def close_and_time(client: TunnelClient) -> float:
    began_s = time.perf_counter()
    await client.close_session(SESSION)
    return time.perf_counter() - began_s


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_closing_a_session_on_either_side_ends_both_qemus_connections_at_once(tunnels, side):
    await tunnels.open(channel_count=2)
    pairs = [await tunnels.connect() for _ in range(2)]

    spent_s = await close_and_time(getattr(tunnels, side))
    for source, destination in pairs:
        await source.wait_end()
        await destination.wait_end()

    assert spent_s < AT_ONCE_S
    assert await getattr(tunnels, side).list_sessions() == ()


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_closing_a_session_ends_a_connection_that_stands_still(tunnels, side):
    await tunnels.open()
    source, destination = await tunnels.connect()
    near = source if side == "source" else destination
    await stall(source)

    spent_s = await close_and_time(getattr(tunnels, side))
    await near.wait_end()

    assert spent_s < AT_ONCE_S


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_closing_a_session_ends_its_connections_while_the_network_is_silent(directory, identity, side):
    async with pair(directory, identity, has_wire=True) as tunnels:
        await tunnels.open()
        source, destination = await tunnels.connect()
        silence(tunnels)
        near = source if side == "source" else destination
        await stall(source)

        spent_s = await close_and_time(getattr(tunnels, side))
        await near.wait_end()

    assert spent_s < AT_ONCE_S


async def test_a_silent_network_ends_the_connections_on_both_sides(directory, identity):
    async with pair(directory, identity, options=QUICK_PING, has_wire=True) as tunnels:
        await tunnels.open()
        source, destination = await tunnels.connect()
        await source.send(b"ping")
        await destination.receive()

        silence(tunnels)

        await source.wait_end()
        await destination.wait_end()


async def test_a_tunnel_that_stops_ends_the_connections_of_the_other(directory, identity):
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(TunnelClient(directory / "source.control"))
        destination = await stack.enter_async_context(TunnelClient(directory / "destination.control"))
        await stack.enter_async_context(tunnel(Settings(f"{LOOPBACK}:0", directory / "source.control", identity)))
        async with tunnel(Settings(f"{LOOPBACK}:0", directory / "destination.control", identity)) as port:
            tunnels = Pair(directory, source, destination, port)
            stack.callback(tunnels.qemu.close)
            await tunnels.open()
            there, back = await tunnels.connect()

        await there.wait_end()
        await back.wait_end()


def silence(tunnels: Pair) -> None:
    assert tunnels.wire is not None
    tunnels.wire.silence()
