"""A coordinator and an agent that answer what a test has put into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from common.errors import FerryError, NotFound
from common.identity import Role
from common.rpc.server import Allowed, Service, serve
from ferry.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, vm_pb2
from ferry.agent.v1 import migration_pb2 as half_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc

ID = "0f9b6c1e-8f2d-4f6a-9d52-3f6f1a2b3c4d"


def migration(  # noqa: PLR0913 -- a field each
    state: pb.Migration.State.ValueType,
    location: pb.Migration.GuestLocation.ValueType = pb.Migration.GUEST_LOCATION_SOURCE,
    *,
    step: str = "",
    error: str = "",
    error_reason: str = "",
    warnings: Sequence[str] = (),
) -> pb.Migration:
    """Return a migration of `web` from host-a to host-b."""
    made = pb.Migration(
        id=ID,
        vm_name="web",
        source_host="host-a",
        destination_host="host-b",
        state=state,
        guest_location=location,
        trace_id="ab" * 16,
        step=step,
        error=error,
        error_reason=error_reason,
        warnings=warnings,
    )
    made.create_time.FromSeconds(1_700_000_000)
    if state >= pb.Migration.STATE_SUCCEEDED:
        made.end_time.FromSeconds(1_700_000_004)
    return made


@dataclass
class FakeCoordinator(rpc.CoordinatorServiceServicer):
    """Answers from its fields.

    Attributes:
        story: what Watch tells; it goes on only while `is_flowing`.
        after_cancel: what Watch tells once a cancel was asked for; empty means that Watch goes on with the story.
        refusals: errors by method name, raised instead of an answer, one a call.
    """

    hosts: list[pb.Host] = field(default_factory=list)
    story: list[pb.Migration] = field(default_factory=list)
    after_cancel: list[pb.Migration] = field(default_factory=list)
    refusals: dict[str, list[FerryError]] = field(default_factory=dict)
    traces_data: bytes = b""
    requests: list[object] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    exported: list[trace_service_pb2.ExportTraceServiceRequest] = field(default_factory=list)
    is_flowing: asyncio.Event = field(default_factory=asyncio.Event)
    is_watched: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancel_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def _take(self, request: object, context: grpc.aio.ServicerContext[object, object]) -> None:
        self.requests.append(request)
        metadata = dict(context.invocation_metadata() or ())
        self.traceparents.append(str(metadata.get("traceparent", "")))
        name = type(request).__name__.removesuffix("Request")
        if self.refusals.get(name):
            raise self.refusals[name].pop(0)

    async def ListHosts(self, request, context):  # noqa: N802 -- gRPC names it
        self._take(request, context)
        return pb.ListHostsResponse(hosts=self.hosts)

    async def StartMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.StartMigrationResponse(migration=self.story[0])

    async def GetMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        if not ID.startswith(request.migration_id):
            raise NotFound(f"migration {request.migration_id!r} is not known")
        return pb.GetMigrationResponse(migration=self.story[-1])

    async def ListMigrations(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.ListMigrationsResponse(migrations=self.story)

    async def ReleaseMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.ReleaseMigrationResponse(migration=self.story[-1])

    async def WatchMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        yield pb.WatchMigrationResponse(migration=self.story[0])
        self.is_watched.set()
        if self.after_cancel:
            await self.is_cancelled.wait()
            for state in self.after_cancel:
                yield pb.WatchMigrationResponse(migration=state)
        for state in self.story[1:]:
            await self.is_flowing.wait()
            yield pb.WatchMigrationResponse(migration=state)

    async def CancelMigration(self, request, context):  # noqa: N802
        self.is_cancel_asked.set()
        self._take(request, context)
        self.is_cancelled.set()
        return pb.CancelMigrationResponse(migration=self.story[0])

    async def PauseMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.PauseMigrationResponse(migration=self.story[0])

    async def UnpauseMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.UnpauseMigrationResponse(migration=self.story[0])

    async def UpdateMigration(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.UpdateMigrationResponse(migration=self.story[0])

    async def GetTrace(self, request, context):  # noqa: N802
        self._take(request, context)
        return pb.GetTraceResponse(traces_data=self.traces_data)

    async def Export(self, request, context):  # noqa: N802
        self.exported.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class FakeAgent(agent_service_pb2_grpc.AgentServiceServicer):
    """The agent of every host."""

    vms: list[vm_pb2.Vm] = field(default_factory=list)
    halves: list[half_pb.Migration] = field(default_factory=list)
    refusal: FerryError | None = None
    requests: list[object] = field(default_factory=list)

    def _take(self, request: object) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal

    async def ListVms(self, request, context):  # noqa: N802
        return vm_pb2.ListVmsResponse(vms=self.vms)

    async def DefineVm(self, request, context):  # noqa: N802
        self._take(request)
        return vm_pb2.DefineVmResponse(vm=vm_pb2.Vm(name="web", state=vm_pb2.Vm.STATE_STOPPED))

    async def StartVm(self, request, context):  # noqa: N802
        self._take(request)
        return vm_pb2.StartVmResponse(vm=vm_pb2.Vm(name=request.vm, state=vm_pb2.Vm.STATE_RUNNING, pid=77))

    async def StopVm(self, request, context):  # noqa: N802
        self._take(request)
        return vm_pb2.StopVmResponse(vm=vm_pb2.Vm(name=request.vm, state=vm_pb2.Vm.STATE_STOPPED))

    async def GetVm(self, request, context):  # noqa: N802
        return vm_pb2.GetVmResponse(vm=self.vms[0] if self.vms else vm_pb2.Vm(name=request.vm))

    async def FenceMigration(self, request, context):  # noqa: N802
        self._take(request)
        return half_pb.FenceMigrationResponse(migration=half_pb.Migration(vm_name="web", resume_token=b"secret"))

    async def ReleaseMigration(self, request, context):  # noqa: N802
        self._take(request)
        return half_pb.ReleaseMigrationResponse(
            migration=half_pb.Migration(vm_name="web", phase="Retired", is_final=True, resume_token=b"secret")
        )

    async def ListMigrations(self, request, context):  # noqa: N802
        assert request.unfinished
        return half_pb.ListMigrationsResponse(migrations=self.halves)


@asynccontextmanager
async def serve_fakes(
    coordinator: FakeCoordinator, agent: FakeAgent, *more: Callable[[grpc.aio.Server], None]
) -> AsyncIterator[str]:
    """Serve both, and what `more` adds, on one port of the loopback; yield its address."""

    def add(server: grpc.aio.Server) -> None:
        rpc.add_CoordinatorServiceServicer_to_server(coordinator, server)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(agent, server)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(coordinator, server)
        for one in more:
            one(server)

    name = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name
    services = [Service(name, add)]
    async with serve("127.0.0.1:0", None, services, allowed=Allowed(frozenset(Role))) as port:
        yield f"127.0.0.1:{port}"
