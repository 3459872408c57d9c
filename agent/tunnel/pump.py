"""Bytes between a UNIX socket of QEMU and a gRPC stream, both ways, each direction ending on its own.

Back-pressure is theirs: the socket is read only when the stream took what was read before, and the stream only when the socket did.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from agent.tunnel.frames import HALF_CLOSE, First, HalfClose, decode, encode_data
from common.errors import InvalidRequest, Unreachable

DEFAULT_FRAME_BYTES: Final = 256 * 1024
SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024


@dataclass(slots=True)
class Counters:
    """What a session carried."""

    forward_bytes: int = 0
    backward_bytes: int = 0


class StreamBroken(Unreachable):
    """The gRPC stream ended before its half-close."""

    default_reason = "STREAM_BROKEN"


async def to_stream(
    source: socket.socket, write: Callable[[bytes], Awaitable[object]], count: Callable[[int], None], frame_bytes: int
) -> None:
    """Carry what QEMU writes until it shuts its writing down; then say so.

    Raises:
        OSError: QEMU reset the connection.
    """
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(source, frame_bytes)
        if not data:
            await write(HALF_CLOSE)
            return
        await write(encode_data(data))
        count(len(data))


async def to_socket(read: Callable[[], Awaitable[bytes | None]], target: socket.socket, count: Callable[[int], None]) -> None:
    """Carry what comes until the half-close; then shut QEMU's reading side down.

    Args:
        read: returns the next message, or None at the end of the stream.
        target: non-blocking socket of QEMU.
        count: told the bytes of each frame.

    Raises:
        StreamBroken: the stream ended without a half-close.
        OSError: QEMU is gone.
    """
    loop = asyncio.get_running_loop()
    while True:
        message = await read()
        if message is None:
            raise StreamBroken("the other end of the tunnel broke the connection")
        frame = decode(message)
        if isinstance(frame, HalfClose):
            target.shutdown(socket.SHUT_WR)
            return
        if isinstance(frame, First):
            raise InvalidRequest("relay: a second first frame", reason="FRAME_INVALID")
        await loop.sock_sendall(target, frame)
        count(len(frame))
