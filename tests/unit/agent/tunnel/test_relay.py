"""A connection through two tunnels behaves as one socket pair does: bytes, ends and back-pressure."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import time

import pytest

from tests.unit.agent.tunnel.fakes import LOOPBACK, SESSION, End, pair

MIB = 1024 * 1024
STALL_S = 0.2
IN_FLIGHT_LIMIT_BYTES = 24 * MIB


async def pour(end: End, content: bytes) -> None:
    await end.send(content)
    end.end_sending()


async def test_every_byte_arrives_in_both_directions_at_once(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()
    there, back = os.urandom(5 * MIB + 1), os.urandom(3 * MIB + 7)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pour(source, there))
        tasks.create_task(pour(destination, back))
        arrived_there = tasks.create_task(destination.receive_all())
        arrived_back = tasks.create_task(source.receive_all())

    assert arrived_there.result() == there
    assert arrived_back.result() == back


@pytest.mark.parametrize("frame_bytes", [4096, 4 * MIB])
async def test_every_byte_arrives_whatever_the_frame_size(directory, identity, frame_bytes):
    content = random.Random(3).randbytes(2 * MIB + 3)
    async with pair(directory, identity, frame_bytes=frame_bytes) as tunnels:
        await tunnels.open()
        source, destination = await tunnels.connect()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pour(source, content))
            arrived = tasks.create_task(destination.receive_all())

    assert arrived.result() == content


async def test_the_source_may_end_its_direction_and_still_be_answered(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()

    source.end_sending()
    assert await destination.receive() == b""
    await destination.send(b"loaded")
    destination.end_sending()

    assert await source.receive_all() == b"loaded"


async def test_the_destination_may_end_its_direction_and_still_be_sent_to(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()

    destination.end_sending()
    assert await source.receive() == b""
    await source.send(b"pages")
    source.end_sending()

    assert await destination.receive_all() == b"pages"


async def test_what_the_source_wrote_before_it_closed_arrives(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()
    content = os.urandom(2 * MIB)

    async with asyncio.TaskGroup() as tasks:
        arrived = tasks.create_task(destination.receive_all())
        await destination.send(b"an answer that nobody will read")
        await source.receive()
        await source.send(content)
        source.close()

    assert arrived.result() == content


async def test_a_source_that_closes_with_an_answer_on_its_way_loses_nothing_that_it_wrote(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()

    await source.send(b"all of it")
    source.close()
    await destination.send(b"too late")
    destination.end_sending()

    assert await destination.receive_all() == b"all of it"


async def test_the_last_words_of_a_destination_that_takes_no_more_arrive(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()

    await source.send(b"x")
    await destination.receive()
    await destination.send(b"sibling indicated error")
    destination.socket.shutdown(socket.SHUT_RD)
    await source.send(b"more pages")
    said = await source.receive()
    destination.close()
    await source.wait_end()

    assert said == b"sibling indicated error"


async def test_a_destination_that_closes_ends_the_source_that_goes_on_writing(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()

    destination.close()

    with pytest.raises(ConnectionError):
        await source.send(bytes(64 * MIB))
    (entrance,) = await tunnels.source.list_sessions()
    (leaving,) = await tunnels.destination.list_sessions()
    assert "QEMU takes no more" in leaving.error
    assert entrance.error.startswith(f"tunnel at {LOOPBACK}:{tunnels.peer_port}")


async def test_a_source_that_resets_its_connection_ends_the_destinations(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()
    await destination.send(b"unread")
    await source.wait_readable()

    source.close()  # with something unread, which is a reset

    await destination.wait_end()


async def test_connections_reach_the_destination_in_the_order_in_which_the_source_made_them(tunnels):
    await tunnels.open(channel_count=17)
    sources = [tunnels.dial() for _ in range(17)]
    destinations = [await tunnels.qemu.accept() for _ in sources]

    for number, source in reversed(list(enumerate(sources))):
        await source.send(bytes((number,)))

    assert [(await one.receive())[0] for one in destinations] == list(range(17))


async def test_nothing_touches_the_destination_before_the_source_connects_and_no_data_is_waited_for(tunnels):
    await tunnels.open()
    assert not tunnels.qemu.has_visitor()

    tunnels.dial()

    await tunnels.qemu.accept()


async def test_one_connection_more_than_ordered_is_refused(tunnels):
    await tunnels.open(channel_count=1)
    await tunnels.connect()

    stranger = tunnels.dial()

    assert await stranger.receive() == b""
    assert not tunnels.qemu.has_visitor()


async def test_small_answers_go_at_once(tunnels):
    await tunnels.open()
    source, destination = await tunnels.connect()
    spans_s = []

    for _ in range(50):
        began_s = time.perf_counter()
        await source.send(b"ping")
        await destination.receive()
        await destination.send(b"pong")
        await source.receive()
        spans_s.append(time.perf_counter() - began_s)

    assert statistics.median(spans_s) < 0.02


async def test_a_reader_that_stalls_stops_the_writer(tunnels):
    await tunnels.open()
    source, _stalled = await tunnels.connect()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(STALL_S):
            await source.send(bytes(512 * MIB))

    (session,) = await tunnels.source.list_sessions()
    assert session.forward_bytes < IN_FLIGHT_LIMIT_BYTES


async def test_a_stalled_connection_does_not_hold_another_one_up(tunnels):
    await tunnels.open(channel_count=2)
    stalled, _ = await tunnels.connect()
    source, destination = await tunnels.connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(STALL_S):
            await stalled.send(bytes(64 * MIB))

    await source.send(b"ping")

    assert await destination.receive() == b"ping"


async def test_the_counters_tell_what_passed(tunnels):
    await tunnels.open(channel_count=3)
    source, destination = await tunnels.connect()
    await source.send(bytes(1000))
    await destination.receive_exactly(1000)
    await destination.send(bytes(10))
    await source.receive_exactly(10)

    (entrance,) = await tunnels.source.list_sessions()
    (leaving,) = await tunnels.destination.list_sessions()

    for session in (entrance, leaving):
        assert (session.session_id, session.connection_count, session.open_connection_count) == (SESSION, 1, 1)
        assert (session.forward_bytes, session.backward_bytes, session.error) == (1000, 10, "")
    assert entrance.is_entrance
    assert not leaving.is_entrance


async def test_a_destination_where_qemu_does_not_listen_ends_the_sources_connection_and_says_why(tunnels):
    await tunnels.open()
    tunnels.qemu.close()

    source = tunnels.dial()
    await source.wait_end()

    (session,) = await tunnels.source.list_sessions()
    assert "QEMU does not listen on" in session.error
