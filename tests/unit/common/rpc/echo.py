"""A service to try servers and channels with: it does what the test's function does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from common.identity import Identity, Role
from common.pki import init_authority, issue
from common.rpc.channel import open_channel
from common.rpc.server import Allowed, Service, serve
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import host_pb2
from ferry.agent.v1 import migration_pb2 as pb

SERVICE = "ferry.agent.v1.AgentService"
Work = Callable[[Any], Awaitable[None]]


class Echo(rpc.AgentServiceServicer):
    """Answers GetHost, and a stream, after the test's own work."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def GetHost(self, request: Any, context: Any) -> host_pb2.GetHostResponse:  # noqa: N802
        await self._work(context)
        return host_pb2.GetHostResponse()

    async def PerformMigration(self, request: Any, context: Any) -> AsyncIterator[pb.PerformMigrationResponse]:  # noqa: N802
        yield pb.PerformMigrationResponse()
        await self._work(context)


async def nothing(_context: Any) -> None:
    """Do nothing."""


@asynccontextmanager
async def echo(
    work: Work = nothing,
    *,
    server: Identity | None = None,
    client: Identity | None = None,
    allowed: frozenset[Role] = frozenset(Role),
    options: tuple[tuple[str, int], ...] = (),
) -> AsyncIterator[rpc.AgentServiceStub]:
    """Serve on the loopback and yield a client."""

    def add(grpc_server: grpc.aio.Server) -> None:
        rpc.add_AgentServiceServicer_to_server(Echo(work), grpc_server)  # type: ignore[abstract]  # the rest is not called

    async with serve("127.0.0.1:0", server, [Service(SERVICE, add)], allowed=Allowed(allowed)) as port:
        channel = open_channel(f"127.0.0.1:{port}", client, options=options)
        try:
            yield rpc.AgentServiceStub(channel)
        finally:
            await channel.close()


def make_identity(directory: Path, name: str, role: Role) -> Identity:
    """Make a certificate of the one authority of a test."""
    authority = directory / "ca"
    if not authority.exists():
        init_authority(authority)
    issue(authority, directory / name, name, role, ["127.0.0.1"])
    return Identity.in_directory(directory / name)
