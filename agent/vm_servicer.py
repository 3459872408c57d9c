"""The part of the agent's gRPC edge that is about VMs that are there: what is done to them, what happened, their consoles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import grpc

from agent import wire
from agent.answers import Answers
from agent.vm import controls
from agent.vm.console import Consoles, Session
from agent.vm.lifecycle import Vms
from agent.vm.vm import Vm
from common.errors import InvalidRequest
from common.rpc.peer import title
from common.tasks import OwnedTasks
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import console_pb2, vm_pb2
from ferry.agent.v1 import control_pb2 as pb

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class VmServicer(rpc.AgentServiceServicer):
    """Answers about VMs that are there."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms
        self._consoles = Consoles(vms)
        self._answers = Answers()

    async def CreateVm(self, request: pb.CreateVmRequest, context: Context) -> pb.CreateVmResponse:
        """Start a VM that is gone when it stops."""

        async def work() -> pb.CreateVmResponse:
            vm = await self._vms.create(request.domain_xml, "domain XML", paused=request.paused, force=request.force)
            return pb.CreateVmResponse(vm=await self._shown(vm))

        return await self._answers.once("CreateVm", request.request_id, work)

    async def PauseVm(self, request: pb.PauseVmRequest, context: Context) -> pb.PauseVmResponse:
        """Ensure that the vCPUs stand still."""
        vm = await self._once("PauseVm", request, lambda vm: controls.pause(self._vms, vm))
        return pb.PauseVmResponse(vm=vm)

    async def ResumeVm(self, request: pb.ResumeVmRequest, context: Context) -> pb.ResumeVmResponse:
        """Ensure that the vCPUs run."""
        vm = await self._once("ResumeVm", request, lambda vm: controls.resume(self._vms, vm))
        return pb.ResumeVmResponse(vm=vm)

    async def ResetVm(self, request: pb.ResetVmRequest, context: Context) -> pb.ResetVmResponse:
        """Press the reset button."""
        vm = await self._once("ResetVm", request, lambda vm: controls.reset(self._vms, vm))
        return pb.ResetVmResponse(vm=vm)

    async def SetVm(self, request: pb.SetVmRequest, context: Context) -> pb.SetVmResponse:
        """Change how it starts, and its tunables."""
        if not request.HasField("autostart") and not request.HasField("cpu_shares"):
            raise InvalidRequest("nothing to set: autostart or cpu_shares is wanted", reason="VALUE_INVALID")

        async def change(vm: Vm) -> None:
            if request.HasField("cpu_shares"):
                controls.set_cpu_shares(self._vms, vm, request.cpu_shares, live=request.live, config=request.config)
            if request.HasField("autostart"):
                controls.set_autostart(self._vms, vm, autostart=request.autostart)

        return pb.SetVmResponse(vm=await self._once("SetVm", request, change))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """List the events that are still held."""
        return pb.ListEventsResponse(events=[wire.vm_event(event) for event in self._vms.events.after(request.after_sequence)])

    async def AttachConsole(  # type: ignore[override]  # the reader and writer form: a client that leaves cancels it where it waits
        self, request_iterator: AsyncIterator[console_pb2.AttachConsoleRequest], context: Context
    ) -> None:
        """Carry bytes between a client and a line."""
        first = await anext(aiter(request_iterator), console_pb2.AttachConsoleRequest())
        if not first.HasField("opening"):
            raise InvalidRequest("the first message has to be the opening", reason="OPENING_MISSING")
        vm, who = self._vms.get(first.opening.vm), title(context)
        place = await self._consoles.find(vm, first.opening.device)
        place = await self._consoles.make_room(vm, place, who, force=first.opening.force)
        with self._consoles.attach(vm, place, who) as session:
            async with OwnedTasks() as tasks:
                tasks.start(_type(session, request_iterator))
                await context.write(console_pb2.AttachConsoleResponse(device=place.device))
                async for data in session.output():
                    await context.write(console_pb2.AttachConsoleResponse(data=data))

    async def _once(self, method: str, request: Any, change: Callable[[Vm], Awaitable[None]]) -> vm_pb2.Vm:  # noqa: ANN401 -- any with request_id and vm
        async def work() -> vm_pb2.Vm:
            vm = self._vms.get(request.vm)
            await change(vm)
            return await self._shown(vm)

        return await self._answers.once(method, request.request_id, work)

    async def _shown(self, vm: Vm) -> vm_pb2.Vm:
        return wire.vm(await self._vms.view(vm), is_full=True)


async def _type(session: Session, requests: AsyncIterator[console_pb2.AttachConsoleRequest]) -> None:
    """Type what the client sends; the session ends when it sends no more."""
    with suppress(grpc.RpcError, OSError):
        async for request in requests:
            await session.write(request.data)
    session.end()
