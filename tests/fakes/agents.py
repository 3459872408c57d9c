"""A pair of agents that answer over real gRPC without any QEMU: each half is a phase that the calls move.

What a test wants to go wrong it says beforehand: `faults` holds, by host and method, errors to answer with, once each.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from common.errors import FerryError, NotFound, Unreachable, WrongState
from common.pki import Role
from common.rpc.server import Allowed, Service, serve
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import host_pb2, vm_pb2
from ferry.agent.v1 import migration_pb2 as pb

TOKEN = b"t" * 32
KEY = "ab" * 32
_STATES = {
    "Begun": (1, 1),
    "Transferring": (2, 1),
    "Sent": (4, 3),
    "HandedOver": (5, 2),
    "Retired": (7, 2),
    "Kept": (8, 1),
    "Lost": (8, 4),
    "Listening": (1, 1),
    "Loaded": (3, 3),
    "Running": (5, 2),
    "Finished": (7, 2),
    "Abandoned": (8, 1),
}
_FINAL = {"Retired", "Kept", "Lost", "Finished", "Abandoned"}


@dataclass
class Lost:
    """The call is done and its answer is lost."""


@dataclass
class World:
    """Both halves, and what was called in which order.

    Attributes:
        phases: phase by host; absent is a half that was never begun.
        outcome: what becomes of the transfer: `HandedOver`, `Sent`, `Kept` or `Lost`.
        has_vm: hosts that know the VM, and whether it runs there.
        holds: methods that wait for their event before they answer.
    """

    phases: dict[str, str] = field(default_factory=dict)
    outcome: str = "HandedOver"
    has_vm: dict[str, bool] = field(default_factory=lambda: {"host-a": True})
    faults: dict[tuple[str, str], list[FerryError | Lost]] = field(default_factory=lambda: defaultdict(list))
    holds: dict[str, asyncio.Event] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    error: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def move_to(self, host: str, phase: str) -> None:
        """Move a half."""
        self.phases[host] = phase
        self._wake()

    def note(self, host: str, method: str) -> None:
        """Remember a call."""
        self.calls.append((host, method))
        self._wake()

    async def wait_called(self, method: str) -> None:
        """Return once a method was called on either host."""
        async with asyncio.timeout(10):
            while not any(call[1] == method for call in self.calls):
                await self.changed.wait()

    def _wake(self) -> None:
        seen, self.changed = self.changed, asyncio.Event()
        seen.set()

    def half(self, host: str) -> pb.Migration:
        """Tell of a half, as an agent would."""
        phase = self.phases.get(host)
        if phase is None:
            raise NotFound("unknown migration", reason="MIGRATION_UNKNOWN")
        state, location = _STATES[phase]
        return pb.Migration(
            id="m",
            vm_name="web",
            vm_uuid="0f1e",
            phase=phase,
            state=pb.Migration.State.ValueType(state),
            guest_location=pb.Migration.GuestLocation.ValueType(location),
            is_final=phase in _FINAL,
            error=self.error if phase in {"Kept", "Lost", "Abandoned"} else "",
            resume_token=TOKEN if phase in {"Sent", "HandedOver"} else b"",
        )

    def runs_on(self) -> set[str]:
        """Name the hosts on which the guest may run."""
        source = {"host-a"} if self.phases.get("host-a", "Begun") in {"Begun", "Transferring", "Kept"} else set()
        return source | ({"host-b"} if self.phases.get("host-b") in {"Running", "Finished"} else set())


class FakeAgent(rpc.AgentServiceServicer):
    """The agent of one host."""

    def __init__(self, host: str, world: World) -> None:
        self._host = host
        self._world = world

    @asynccontextmanager
    async def _call(self, method: str, epoch: int = 0) -> AsyncIterator[None]:
        world = self._world
        world.note(self._host, method)
        if epoch:
            if epoch < max(world.epochs, default=0):
                raise WrongState("stale epoch", reason="EPOCH_STALE")
            world.epochs.append(epoch)
        if method in world.holds:
            await world.holds[method].wait()
        faults = world.faults[self._host, method]
        fault = faults.pop(0) if faults else None
        if isinstance(fault, FerryError):
            raise fault
        yield
        if isinstance(fault, Lost):
            raise Unreachable("the answer is lost", reason="PEER_UNREACHABLE")

    async def GetHost(self, request: Any, context: Any) -> host_pb2.GetHostResponse:
        async with self._call("GetHost"):
            return host_pb2.GetHostResponse(host=host_pb2.Host(qemu_version="7.2.22", accelerator="tcg"))

    async def ListSpans(self, request: Any, context: Any) -> host_pb2.ListSpansResponse:
        return host_pb2.ListSpansResponse()

    async def GetVm(self, request: Any, context: Any) -> vm_pb2.GetVmResponse:
        async with self._call("GetVm"):
            runs = self._world.has_vm.get(self._host)
            if runs is None or request.vm not in {"web", "0f1e"}:
                raise NotFound(f"VM {request.vm} is unknown", reason="VM_NOT_FOUND")
            state = vm_pb2.Vm.STATE_RUNNING if runs else vm_pb2.Vm.STATE_STOPPED
            return vm_pb2.GetVmResponse(vm=vm_pb2.Vm(name="web", state=state))

    async def BeginMigration(self, request: Any, context: Any) -> pb.BeginMigrationResponse:
        async with self._call("Begin", request.epoch):
            self._world.phases.setdefault(self._host, "Begun")
            half = self._world.half(self._host)
            if half.is_final:
                raise WrongState("ended", reason="MIGRATION_ENDED")
        return pb.BeginMigrationResponse(migration=half, definition=b"{}", resume_token_sha256=b"s" * 32)

    async def PrepareMigration(self, request: Any, context: Any) -> pb.PrepareMigrationResponse:
        async with self._call("Prepare", request.epoch):
            self._world.phases.setdefault(self._host, "Listening")
        return pb.PrepareMigrationResponse(
            migration=self._world.half(self._host),
            endpoint=pb.Endpoint(uri="tcp:127.0.0.1:1", psk_key=KEY),
            agent_address="127.0.0.1:1",
        )

    async def PerformMigration(self, request: Any, context: Any) -> AsyncIterator[pb.PerformMigrationResponse]:
        async with self._call("Perform", request.epoch):
            self._transfer()
        async for half in self._follow():
            yield pb.PerformMigrationResponse(migration=half)

    def _transfer(self) -> None:
        world = self._world
        if world.phases.get("host-a") == "Begun":
            world.move_to("host-a", world.outcome)
            if world.outcome == "HandedOver":
                world.move_to("host-b", "Running")
            if world.outcome in {"Sent", "Lost"}:
                world.move_to("host-b", "Loaded")

    async def WatchMigration(self, request: Any, context: Any) -> AsyncIterator[pb.WatchMigrationResponse]:
        async with self._call("Watch"):
            pass
        async for half in self._follow():
            yield pb.WatchMigrationResponse(migration=half)

    async def _follow(self) -> AsyncIterator[pb.Migration]:
        while True:
            changed = self._world.changed
            half = self._world.half(self._host)
            yield half
            if half.is_final:
                return
            await changed.wait()

    async def ResumeMigration(self, request: Any, context: Any) -> pb.ResumeMigrationResponse:
        async with self._call("Resume"):
            assert request.resume_token == TOKEN
            self._world.move_to(self._host, "Running")
        return pb.ResumeMigrationResponse(migration=self._world.half(self._host))

    async def FinishMigration(self, request: Any, context: Any) -> pb.FinishMigrationResponse:
        async with self._call("Finish", request.epoch):
            if self._world.phases.get(self._host) not in {"Running", "Finished"}:
                raise WrongState("the guest is not here", reason="WRONG_PHASE")
            self._world.move_to(self._host, "Finished")
        return pb.FinishMigrationResponse(migration=self._world.half(self._host))

    async def ConfirmMigration(self, request: Any, context: Any) -> pb.ConfirmMigrationResponse:
        async with self._call("Confirm", request.epoch):
            if self._world.phases.get(self._host) not in {"Sent", "HandedOver", "Retired"}:
                raise WrongState("the guest was not sent", reason="GUEST_NOT_SENT")
            self._world.move_to(self._host, "Retired")
        return pb.ConfirmMigrationResponse(migration=self._world.half(self._host))

    async def CancelMigration(self, request: Any, context: Any) -> pb.CancelMigrationResponse:
        async with self._call("Cancel", request.epoch):
            if self._world.half(self._host).phase not in {"Begun", "Transferring", "Kept", "Lost"}:
                raise WrongState("the guest was given away", reason="GUEST_SENT")
            if self._world.phases[self._host] != "Lost":
                self._world.error = self._world.error or request.cause
                self._world.move_to(self._host, "Kept")
        return pb.CancelMigrationResponse(migration=self._world.half(self._host))

    async def AbandonMigration(self, request: Any, context: Any) -> pb.AbandonMigrationResponse:
        async with self._call("Abandon", request.epoch):
            if self._world.half(self._host).phase in {"Running", "Finished"}:
                raise WrongState("the guest ran here", reason="GUEST_RAN_HERE")
            self._world.move_to(self._host, "Abandoned")
        return pb.AbandonMigrationResponse(migration=self._world.half(self._host))

    async def GetMigration(self, request: Any, context: Any) -> pb.GetMigrationResponse:
        async with self._call("Get"):
            return pb.GetMigrationResponse(migration=self._world.half(self._host))


@asynccontextmanager
async def fake_agents(world: World) -> AsyncIterator[dict[str, str]]:
    """Serve both agents on the loopback; yield their addresses by host."""
    first_agent = FakeAgent("host-a", world)  # type: ignore[abstract]  # what is missing is not called
    second_agent = FakeAgent("host-b", world)  # type: ignore[abstract]
    async with _serve(first_agent) as first, _serve(second_agent) as second:
        yield {"host-a": f"127.0.0.1:{first}", "host-b": f"127.0.0.1:{second}"}


@asynccontextmanager
async def _serve(agent: FakeAgent) -> AsyncIterator[int]:
    def add(server: grpc.aio.Server) -> None:
        rpc.add_AgentServiceServicer_to_server(agent, server)

    services = [Service("ferry.agent.v1.AgentService", add)]
    async with serve("127.0.0.1:0", None, services, allowed=Allowed(frozenset(Role))) as port:
        yield port
