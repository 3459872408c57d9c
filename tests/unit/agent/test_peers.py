"""The source's agent gives the guest away on a stream that it opened before, and by a call when that broke."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import wire
from agent.migration.errors import GuestNeverRan
from agent.migration.parts import Destination
from agent.peers import RemotePeers
from common.errors import FerryError, Unreachable
from common.identity import Role
from common.rpc.server import Allowed, Service, serve
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import migration_pb2 as pb

TOKEN = b"t" * 32


class Agent(rpc.AgentServiceServicer):
    """Notes how it is asked; refuses or breaks off as told."""

    def __init__(self, *, refusal: FerryError | None = None, breaks_off: bool = False) -> None:
        self.asked: list[tuple[str, pb.ResumeMigrationRequest]] = []
        self._refusal = refusal
        self._breaks_off = breaks_off

    async def HandOver(
        self, request_iterator: AsyncIterator[pb.HandOverRequest], context: Any
    ) -> AsyncIterator[pb.HandOverResponse]:
        async for request in request_iterator:
            self.asked.append(("stream", request.resume))
            if self._breaks_off:
                return
            if self._refusal is not None:
                raise self._refusal
            yield pb.HandOverResponse(ran_for=wire.duration(0.25))

    async def ResumeMigration(self, request: pb.ResumeMigrationRequest, context: Any) -> pb.ResumeMigrationResponse:
        self.asked.append(("call", request))
        return pb.ResumeMigrationResponse(ran_for=wire.duration(0.5))


@asynccontextmanager
async def destination(directory: Path, agent: Agent) -> AsyncIterator[Destination]:
    address = f"unix:{directory}/agent.sock"
    service = Service("ferry.agent.v1.AgentService", lambda server: rpc.add_AgentServiceServicer_to_server(agent, server))
    async with serve(address, None, [service], allowed=Allowed(frozenset(Role))), RemotePeers(None).connect(address) as found:
        yield found


async def test_a_hand_over_is_asked_on_the_open_stream_and_repeated_by_a_call(tmp_path: Path):
    agent = Agent()  # type: ignore[abstract]  # what is missing is not called
    async with destination(tmp_path, agent) as found:
        assert await found.resume("m", TOKEN, keep_paused=True) == 0.25
        assert await found.resume("m", TOKEN, keep_paused=True) == 0.5

    assert [way for way, _ in agent.asked] == ["stream", "call"]
    assert {(asked.migration_id, asked.resume_token, asked.keep_paused) for _, asked in agent.asked} == {("m", TOKEN, True)}


async def test_a_refusal_on_the_stream_says_what_a_refused_call_says(tmp_path: Path):
    async with destination(tmp_path, Agent(refusal=GuestNeverRan("it never ran here"))) as found:  # type: ignore[abstract]
        with pytest.raises(GuestNeverRan, match="it never ran here"):
            await found.resume("m", TOKEN, keep_paused=False)


async def test_a_stream_that_ends_without_an_answer_leaves_the_outcome_open(tmp_path: Path):
    async with destination(tmp_path, Agent(breaks_off=True)) as found:  # type: ignore[abstract]
        with pytest.raises(Unreachable):
            await found.resume("m", TOKEN, keep_paused=False)

        assert await found.resume("m", TOKEN, keep_paused=False) == 0.5
