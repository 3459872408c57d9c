"""Other agents, as the source of a migration calls its destination."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from agent import wire
from agent.migration.errors import GuestLost, GuestNeverRan, GuestWhole
from agent.migration.order import Endpoint
from agent.migration.parts import Destination, PathProof, PeerReport
from common.errors import Expired, Unreachable, WrongState
from common.identity import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from common.rpc.tracing import asking
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import migration_pb2 as pb

RESUME_TIMEOUT_S: Final = 6.0
REPORT_TIMEOUT_S: Final = 2.5  # longer than a channel waits between two attempts to connect
REOPEN_TIMEOUT_S: Final = 10.0
ABANDON_TIMEOUT_S: Final = 5.0
HandOver: TypeAlias = "grpc.aio.StreamStreamCall[pb.HandOverRequest, pb.HandOverResponse]"


class RemoteDestination:
    """The destination's agent on an open channel."""

    def __init__(self, stub: rpc.AgentServiceStub, address: str) -> None:
        self._stub = stub
        self._hand_over: HandOver | None = stub.HandOver()
        self._peer = f"the destination's agent at {address}"

    async def report_channels(self, migration_id: str, local_ports: tuple[int, ...], *, is_complete: bool) -> None:
        """Tell which connections are ours."""
        request = pb.ReportChannelsRequest(migration_id=migration_id, local_ports=local_ports, is_complete=is_complete)
        with calls_to(self._peer):  # an agent that was started again is found at the channel's next attempt
            await self._stub.ReportChannels(request, timeout=REPORT_TIMEOUT_S, wait_for_ready=True)

    async def ping(self, migration_id: str, source_address: str, *, timeout_s: float) -> None:
        """Ask whether it is there, and say where the source's agent is."""
        request = pb.PingMigrationRequest(migration_id=migration_id, source_agent_address=source_address)
        with calls_to(self._peer):
            await self._stub.PingMigration(request, timeout=timeout_s)

    async def resume(self, migration_id: str, token: bytes, *, keep_paused: bool) -> float:
        """Give the guest away; return for how many seconds it has run there."""
        request = pb.ResumeMigrationRequest(
            request_id=f"{migration_id}-resume", migration_id=migration_id, resume_token=token, keep_paused=keep_paused
        )
        with self._refusals():
            ran_for = await self._resume(request)
        return wire.seconds(ran_for)

    async def _resume(self, request: pb.ResumeMigrationRequest) -> Duration:
        """Ask on the stream that is open since the beginning, which takes half the time of a call; the second time by a call."""
        stream, self._hand_over = self._hand_over, None
        if stream is None or stream.done():
            return (await self._stub.ResumeMigration(request, timeout=RESUME_TIMEOUT_S)).ran_for
        try:
            with asking(wire.RESUME_METHOD) as traceparent:
                async with asyncio.timeout(RESUME_TIMEOUT_S):
                    await stream.write(pb.HandOverRequest(resume=request, traceparent=traceparent))
                    answer = await stream.read()
        except TimeoutError as error:
            raise Expired(f"{self._peer} did not answer in time", reason="PEER_SILENT", peer=self._peer) from error
        finally:
            stream.cancel()
        if not isinstance(answer, pb.HandOverResponse):
            raise Unreachable(f"{self._peer} is being stopped", reason="PEER_UNREACHABLE", peer=self._peer)
        return answer.ran_for

    async def abandon(self, migration_id: str, token: bytes) -> None:
        """Let the destination's half be undone."""
        request = pb.AbandonMigrationRequest(migration_id=migration_id, resume_token=token, cause="the guest stays at the source")
        with calls_to(self._peer):
            await self._stub.AbandonMigration(request, timeout=ABANDON_TIMEOUT_S)

    async def prove_path(self, migration_id: str) -> PathProof:
        """Ask how to prove the way for a new connection."""
        with self._refusals():
            answer = await self._stub.ProvePath(pb.ProvePathRequest(migration_id=migration_id), timeout=REOPEN_TIMEOUT_S)
        return PathProof(answer.uri, answer.is_fragile)

    async def reopen(self, migration_id: str) -> Endpoint:
        """Let the destination's QEMU listen anew."""
        request = pb.ReopenMigrationRequest(migration_id=migration_id)
        with self._refusals():
            answer = await self._stub.ReopenMigration(request, timeout=REOPEN_TIMEOUT_S)
        return wire.endpoint(answer.endpoint)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Tell refusals apart that end the migration."""
        try:
            with calls_to(self._peer):
                yield
        except WrongState as error:
            for kind in (GuestNeverRan, GuestLost, GuestWhole):
                if error.reason == kind.default_reason:
                    raise kind(error.text, **error.facts) from error
            raise

    async def watch(self, migration_id: str) -> AsyncIterator[PeerReport]:
        """Follow the destination's half."""
        with calls_to(self._peer):
            async for response in self._stub.WatchMigration(pb.WatchMigrationRequest(migration_id=migration_id)):
                half = response.migration
                yield PeerReport(
                    is_undone=half.phase in {"Undoing", "Abandoned"},
                    is_final=half.is_final,
                    error=half.error,
                    reason=half.error_reason,
                    is_lost=half.phase == "Lost",
                    is_kept=half.is_definition_kept,
                )


class RemotePeers:
    """Ways to the agents of other hosts, with this agent's certificate."""

    def __init__(self, identity: Identity | None) -> None:
        self._identity = identity

    @asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Destination]:
        """Open a channel to the agent at `host:port`."""
        channel = open_channel(address, self._identity)
        try:
            yield RemoteDestination(rpc.AgentServiceStub(channel), address)
        finally:
            await channel.close()
