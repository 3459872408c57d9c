"""A pair of agents that answer over real gRPC and hold the halves of `tests.fakes.world`; they can be stopped and started again."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from common.errors import FerryError, InvalidRequest, NotFound, Unreachable, WrongState
from common.identity import Role
from common.rpc.server import Allowed, Service, serve
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import host_pb2, vm_pb2
from ferry.agent.v1 import migration_pb2 as pb
from tests.fakes.world import KEY, TOKEN, TUNNEL_TOKEN, AnyPhase, Lost, World

HOSTS = ("host-a", "host-b")


class FakeAgent(rpc.AgentServiceServicer):
    """One life of the agent of one host; the world outlives it."""

    def __init__(self, host: str, world: World) -> None:
        self._host = host
        self._world = world
        self._has_answered = False

    @asynccontextmanager
    async def _call(self, method: str, request: Any = None) -> AsyncIterator[None]:
        world = self._world
        world.note(self._host, method)
        world.requests.append(request)
        if method in world.holds_before:
            await world.holds_before[method].wait()
        if hasattr(request, "epoch"):
            world.check_epoch(self._host, request.epoch)
        faults = world.faults[self._host, method]
        fault = faults.pop(0) if faults else None
        if isinstance(fault, FerryError):
            raise fault
        yield
        if method in world.holds_after:
            await world.holds_after[method].wait()
        if isinstance(fault, Lost):
            raise Unreachable("the answer is lost", reason="PEER_UNREACHABLE")

    def _half(self) -> pb.Migration:
        return self._world.half(self._host)

    def _begin(self, phase: AnyPhase) -> None:
        """Add a half, or answer again what this life of the agent remembers."""
        if self._host not in self._world.phases:
            self._world.begin(self._host, phase)
            self._has_answered = True
        elif self._half().is_final:
            raise WrongState("migration has ended; a new one needs a new id", reason="MIGRATION_ENDED")
        elif not self._has_answered:
            raise WrongState(f"the agent of {self._host} was restarted since", reason="AGENT_RESTARTED")

    async def GetHost(self, request: Any, context: Any) -> host_pb2.GetHostResponse:
        async with self._call("GetHost"):
            return host_pb2.GetHostResponse(host=host_pb2.Host(qemu_version="7.2.22", accelerator="tcg"))

    async def ListSpans(self, request: Any, context: Any) -> host_pb2.ListSpansResponse:
        return host_pb2.ListSpansResponse(traces_data=self._world.spans)

    async def GetVm(self, request: Any, context: Any) -> vm_pb2.GetVmResponse:
        async with self._call("GetVm"):
            runs = self._world.has_vm.get(self._host)
            if runs is None or request.vm not in {"web", "0f1e"}:
                raise NotFound(f"VM {request.vm} is unknown", reason="VM_NOT_FOUND")
            state = vm_pb2.Vm.STATE_RUNNING if runs else vm_pb2.Vm.STATE_STOPPED
            return vm_pb2.GetVmResponse(vm=vm_pb2.Vm(name="web", state=state))

    async def BeginMigration(self, request: Any, context: Any) -> pb.BeginMigrationResponse:
        self._world.migration_id = request.migration_id
        async with self._call("Begin", request):
            self._begin(out.Begun())
            return pb.BeginMigrationResponse(migration=self._half(), definition=b"{}", resume_token_sha256=b"s" * 32)

    async def PrepareMigration(self, request: Any, context: Any) -> pb.PrepareMigrationResponse:
        async with self._call("Prepare", request):
            self._begin(inc.Listening())
            endpoint = pb.Endpoint(uri="tcp:127.0.0.1:1", psk_key=KEY, tunnel_token=TUNNEL_TOKEN)
            return pb.PrepareMigrationResponse(migration=self._half(), endpoint=endpoint, agent_address="127.0.0.1:1")

    async def PerformMigration(self, request: Any, context: Any) -> AsyncIterator[pb.PerformMigrationResponse]:
        async with self._call("Perform", request):
            if isinstance(self._world.get(self._host), out.Begun):
                self._world.apply(self._host, out.PerformRequested())
        async for half in self._follow():
            yield pb.PerformMigrationResponse(migration=half)
            if half.phase in {"HandedOver", "Retiring"}:
                return

    async def WatchMigration(self, request: Any, context: Any) -> AsyncIterator[pb.WatchMigrationResponse]:
        async with self._call("Watch"):
            pass
        async for half in self._follow():
            yield pb.WatchMigrationResponse(migration=half)

    async def _follow(self) -> AsyncIterator[pb.Migration]:
        while True:
            changed = self._world.changed
            half = self._half()
            yield half
            if half.is_final:
                return
            await changed.wait()

    async def ResumeMigration(self, request: Any, context: Any) -> pb.ResumeMigrationResponse:
        async with self._call("Resume", request):
            if request.resume_token != TOKEN:
                raise InvalidRequest("wrong resume token", reason="RESUME_TOKEN_WRONG")
            phase = self._world.get(self._host)
            if isinstance(phase, inc.Abandoned):
                raise WrongState("the guest never ran here", reason="GUEST_NEVER_RAN")
            if not isinstance(phase, inc.Finished):
                self._world.request(self._host, inc.ResumeRequested(request.keep_paused), "GUEST_NOT_LOADED")
        return pb.ResumeMigrationResponse(migration=self._half())

    async def FinishMigration(self, request: Any, context: Any) -> pb.FinishMigrationResponse:
        async with self._call("Finish", request):
            if not isinstance(self._world.get(self._host), inc.Finished):
                self._world.request(self._host, inc.FinishRequested(), "WRONG_PHASE")
        return pb.FinishMigrationResponse(migration=self._half())

    async def ConfirmMigration(self, request: Any, context: Any) -> pb.ConfirmMigrationResponse:
        async with self._call("Confirm", request):
            lost = out.DestinationLost(Cause(request.lost.cause, request.lost.reason), request.lost.is_definition_kept)
            event = lost if request.HasField("lost") else out.ConfirmRequested()
            if not isinstance(self._world.get(self._host), out.Retired | out.Lost):
                self._world.request(self._host, event, "GUEST_NOT_SENT")
        return pb.ConfirmMigrationResponse(migration=self._half())

    async def CancelMigration(self, request: Any, context: Any) -> pb.CancelMigrationResponse:
        async with self._call("Cancel", request):
            cause = Cause(request.cause or "cancelled by a client", "CANCELLED", by_wish=True)
            if not isinstance(self._world.get(self._host), out.Kept | out.Lost):
                self._world.request(self._host, out.CancelRequested(cause), "GUEST_SENT")
        return pb.CancelMigrationResponse(migration=self._half())

    async def AbandonMigration(self, request: Any, context: Any) -> pb.AbandonMigrationResponse:
        async with self._call("Abandon", request):
            cause = Cause(request.cause or "the migration was given up", "ABANDONED", by_wish=True)
            if not isinstance(self._world.get(self._host), inc.Abandoned):
                self._world.request(self._host, inc.AbandonRequested(cause, request.source_has_ended), "GUEST_RAN_HERE")
        return pb.AbandonMigrationResponse(migration=self._half())

    async def PauseMigration(self, request: Any, context: Any) -> pb.PauseMigrationResponse:
        async with self._call("Pause", request):
            return pb.PauseMigrationResponse(migration=self._half())

    async def UpdateMigration(self, request: Any, context: Any) -> pb.UpdateMigrationResponse:
        async with self._call("Update", request):
            return pb.UpdateMigrationResponse(migration=self._half())

    async def ReleaseMigration(self, request: Any, context: Any) -> pb.ReleaseMigrationResponse:
        async with self._call("Release", request):
            cause = Cause("released", "RELEASED", by_wish=True)
            phase = self._world.get(self._host)
            event = (
                out.ReleaseRequested(cause, request.force)
                if isinstance(phase, out.Phase.__args__)
                else inc.ReleaseRequested(cause, request.force)
            )
            self._world.request(self._host, event, "GUEST_IN_DOUBT")
        return pb.ReleaseMigrationResponse(migration=self._half())

    async def ListMigrations(self, request: Any, context: Any) -> pb.ListMigrationsResponse:
        async with self._call("List"):
            halves = [self._half()] if self._host in self._world.phases else []
            for half in halves:
                half.unattended.FromSeconds(self._world.unattended_s[self._host])
            return pb.ListMigrationsResponse(migrations=[half for half in halves if not (half.is_final and request.unfinished)])

    async def GetMigration(self, request: Any, context: Any) -> pb.GetMigrationResponse:
        async with self._call("Get"):
            return pb.GetMigrationResponse(migration=self._half())


class FakeFleet:
    """The servers of both agents, on UNIX sockets."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world = world
        self.addresses = {host: f"unix:{directory}/{host}.sock" for host in HOSTS}
        self._servers = {host: AsyncExitStack() for host in HOSTS}

    async def start(self, host: str) -> None:
        """Begin a life of an agent."""
        agent = FakeAgent(host, self.world)  # type: ignore[abstract]  # what is missing is not called

        def add(server: grpc.aio.Server) -> None:
            rpc.add_AgentServiceServicer_to_server(agent, server)

        service = Service("ferry.agent.v1.AgentService", add)
        server = serve(self.addresses[host], None, [service], allowed=Allowed(frozenset(Role)))
        await self._servers[host].enter_async_context(server)

    async def stop(self, host: str) -> None:
        """End it, and every call to it."""
        await self._servers[host].aclose()


@asynccontextmanager
async def fake_agents(world: World, directory: Path) -> AsyncIterator[FakeFleet]:
    """Serve both agents."""
    fleet = FakeFleet(world, directory)
    for host in HOSTS:
        await fleet.start(host)
    try:
        yield fleet
    finally:
        for host in HOSTS:
            await fleet.stop(host)
