"""Bytes between a connection of QEMU and a stream, each direction on its own.

      QEMU ==> Link.receive ==> data, data, .. half_close ==> stream        (send_on)
      QEMU <== Link.send    <== data, data, .. half_close <== stream        (hand_over)

Back-pressure is theirs: QEMU is read only when the stream took what was read before, the stream only when QEMU did. Nothing waits
for more bytes to come: what QEMU wrote goes on at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

from agent.tunnel.frames import HALF_CLOSE, HEADER_LIMIT_BYTES, First, HalfClose, decode, encode_data
from agent.tunnel.link import Link, StreamBroken
from agent.tunnel.streams import Stream
from common.errors import InvalidRequest

# Both chosen by measurement: docs/decisions/0003-tunnel-frames.md.
DEFAULT_FRAME_BYTES: Final = 1024 * 1024
FRAME_LIMIT_BYTES: Final = 4 * 1024 * 1024


async def send_on(link: Link, stream: Stream, frame_bytes: int) -> None:
    """Carry what QEMU writes until it shuts its writing down; then say so.

    Raises:
        StreamBroken: QEMU reset the connection, or the stream is over.
    """
    while content := await link.receive(frame_bytes):
        await stream.write(encode_data(content))
    await stream.write(HALF_CLOSE)
    await stream.end_writing()


async def hand_over(stream: Stream, link: Link) -> None:
    """Carry what comes until the half-close; then shut QEMU's reading down, and wait for the stream to end.

    Raises:
        QemuGone: QEMU takes no more, and the rest was not read.
        StreamBroken: the stream broke.
        InvalidRequest: the other side sent what is no frame, or not now.
    """
    while not isinstance(frame := await _next(stream), HalfClose):
        await link.send(frame)
    link.end_sending()
    if await stream.read() is not None:
        raise InvalidRequest("relay: a frame after the half-close", reason="FRAME_INVALID")


async def discard(stream: Stream) -> None:
    """Read on for a QEMU that takes no more, so that the other direction can still end in order."""
    while await stream.read() is not None:
        pass


async def run_both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Run two directions until both have ended; the first failure ends the other, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(one)
            directions.create_task(other)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def run_unless_closed(work: Coroutine[None, None, None], closed: asyncio.Event) -> None:
    """Run some work of a session; when the session is closed it is cancelled, at once.

    Raises:
        StreamBroken: the session was closed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_raise_when_set(closed))
            await group.create_task(work)
            watcher.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _next(stream: Stream) -> memoryview | HalfClose:
    message = await stream.read()
    if message is None:
        raise StreamBroken("the other tunnel broke the connection off")
    if len(message) > FRAME_LIMIT_BYTES + HEADER_LIMIT_BYTES:
        raise InvalidRequest(
            f"relay: a message of {len(message)} bytes, data is at most {FRAME_LIMIT_BYTES}", reason="FRAME_TOO_LARGE"
        )
    frame = decode(message)
    if isinstance(frame, First):
        raise InvalidRequest("relay: a second first frame", reason="FRAME_INVALID")
    return frame


async def _raise_when_set(closed: asyncio.Event) -> None:
    await closed.wait()
    raise StreamBroken("the session was closed", reason="SESSION_CLOSED")
