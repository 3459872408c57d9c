"""A gRPC stream of frames, seen alike from both ends; gRPC's own errors stop here."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

import grpc

from agent.tunnel.link import StreamBroken

Call: TypeAlias = grpc.aio.StreamStreamCall[bytes, bytes]
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
ABORT_TIMEOUT_S: Final = 1.0
# What grpc.aio raises for a call that is over, beside AioRpcError: writing to it, and writing while it ends.
_OVER: Final = (asyncio.InvalidStateError, grpc.aio.InternalError, grpc.aio.UsageError)


class Stream(Protocol):
    """Whole messages, both ways."""

    async def write(self, message: bytes) -> None:
        """Send a message; return when the transport took it.

        Raises:
            StreamBroken: the stream is over.
        """

    async def read(self) -> bytes | None:
        """Return the next message, or None when the other side has ended its direction in order.

        Raises:
            StreamBroken: the stream is over.
        """

    async def end_writing(self) -> None:
        """Send no more messages."""


class EntranceStream:
    """The stream as its caller has it, at the source.

    Args:
        call: the call, begun.
        peer: names the other tunnel, for errors.
    """

    def __init__(self, call: Call, peer: str) -> None:
        self._call = call
        self._peer = peer

    async def write(self, message: bytes) -> None:
        """Send a message."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise self._broken(error) from error
        except _OVER as error:
            raise StreamBroken(f"{self._peer} ended the stream") from error

    async def read(self) -> bytes | None:
        """Return the next message."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._broken(error) from error
        return message if isinstance(message, bytes) else None

    async def end_writing(self) -> None:
        """Half-close the call."""
        await self._call.done_writing()

    def _broken(self, error: grpc.aio.AioRpcError) -> StreamBroken:
        if error.code() is grpc.StatusCode.INTERNAL:  # a failed write hides from grpc.aio what the other side said
            return StreamBroken(f"{self._peer} broke the connection off; its log says why")
        return StreamBroken(f"{self._peer}: {error.details() or error.code().name}")


class ExitStream:
    """The stream as its servicer has it, at the destination."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: bytes) -> None:
        """Send a message."""
        try:
            await self._context.write(message)
        except _OVER as error:
            raise StreamBroken("the source's tunnel ended the stream") from error

    async def read(self) -> bytes | None:
        """Return the next message."""
        try:
            message = await self._context.read()
        except _OVER as error:
            raise StreamBroken("the source's tunnel ended the stream") from error
        return message if isinstance(message, bytes) else None

    async def end_writing(self) -> None:
        """Do nothing: the direction ends with the call."""

    async def abort(self, text: str) -> None:
        """End the call with ABORTED, or leave it as it is over already; a peer that takes nothing is left to the keepalive.

        Raises:
            grpc.aio.AbortError: it was ended, and gRPC wants to see this.
        """
        with suppress(TimeoutError, *_OVER):
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await self._context.abort(grpc.StatusCode.ABORTED, text)
