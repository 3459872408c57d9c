"""The data plane for other tunnels: CheckSession and Relay. It decides nothing; it knows sessions by their token only."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import grpc

from agent.tunnel.entrance import SERVICE
from agent.tunnel.exits import Exit, Exits
from agent.tunnel.frames import OPENED, First, decode, decode_open
from agent.tunnel.link import Link, QemuGone
from agent.tunnel.pump import FRAME_LIMIT_BYTES, hand_over, run_both, run_unless_closed, send_on
from agent.tunnel.streams import Context, ExitStream
from common.errors import FerryError, InvalidRequest
from ferry.tunnel.v1 import tunnel_service_pb2 as pb

OPEN_TIMEOUT_S: Final = 10.0
# How long a QEMU that takes no more may go on telling why.
LAST_WORDS_S: Final = 1.0


class RelayServicer:
    """Carries connections from other tunnels to QEMU.

    Args:
        exits: the sessions that streams may reach.
        frame_bytes: most bytes of a data frame that it sends.
    """

    def __init__(self, exits: Exits, *, frame_bytes: int) -> None:
        self._exits = exits
        self._frame_bytes = frame_bytes

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve on `server`; messages of Relay stay bytes, they are read and written by `frames`."""
        handlers = {
            "CheckSession": grpc.unary_unary_rpc_method_handler(
                self.check,
                request_deserializer=pb.CheckSessionRequest.FromString,
                response_serializer=pb.CheckSessionResponse.SerializeToString,
            ),
            "Relay": grpc.stream_stream_rpc_method_handler(self.relay),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def check(self, request: pb.CheckSessionRequest, context: Context) -> pb.CheckSessionResponse:
        """Prove that path and token are good."""
        self._exits.admit(request.token)
        return pb.CheckSessionResponse(frame_limit_bytes=FRAME_LIMIT_BYTES)

    async def relay(self, requests: object, context: Context) -> None:
        """Carry one connection; one that breaks after it was made ends with ABORTED."""
        stream = ExitStream(context)
        session, ordinal = await self._read_open(stream)
        link = await session.connect(ordinal)
        try:
            with session.holding(link):
                await run_unless_closed(self._carry(stream, link), session.closed)
        except FerryError as error:
            session.note(error, ordinal)
            await stream.abort(error.text)

    async def _read_open(self, stream: ExitStream) -> tuple[Exit, int]:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                message = await stream.read()
        except TimeoutError as error:
            raise InvalidRequest(f"relay: no Open in {OPEN_TIMEOUT_S:g} s", reason="FRAME_INVALID") from error
        frame = None if message is None else decode(message)
        if not isinstance(frame, First):
            raise InvalidRequest("relay: the first frame is not an Open", reason="FRAME_INVALID")
        opened = decode_open(frame)
        return self._exits.admit(opened.token), opened.ordinal

    async def _carry(self, stream: ExitStream, link: Link) -> None:
        await stream.write(OPENED)
        told_all = asyncio.Event()
        await run_both(self._hand_over(stream, link, told_all), self._send_back(link, stream, told_all))

    async def _hand_over(self, stream: ExitStream, link: Link, told_all: asyncio.Event) -> None:
        try:
            await hand_over(stream, link)
        except QemuGone:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await told_all.wait()
            raise

    async def _send_back(self, link: Link, stream: ExitStream, told_all: asyncio.Event) -> None:
        try:
            await send_on(link, stream, self._frame_bytes)
        finally:
            told_all.set()
