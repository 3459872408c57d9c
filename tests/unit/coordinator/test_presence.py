"""Where a VM is, by what each host says of it: one on its way in, or out again, is not there."""

from __future__ import annotations

import pytest

from coordinator.agents import Agent, Presence
from ferry.agent.v1 import vm_pb2

Vm = vm_pb2.Vm


class Stub:
    """An agent that knows one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    async def GetVm(self, _request: vm_pb2.GetVmRequest, timeout: float) -> vm_pb2.GetVmResponse:  # noqa: ASYNC109, N802 -- as gRPC has it
        assert timeout > 0
        return vm_pb2.GetVmResponse(vm=self._vm)


@pytest.mark.parametrize(
    ("vm", "presence"),
    [
        (Vm(state=Vm.STATE_RUNNING), Presence.RUNS),
        (Vm(state=Vm.STATE_PAUSED, job="migration-out"), Presence.RUNS),
        (Vm(state=Vm.STATE_UNKNOWN), Presence.RUNS),
        (Vm(state=Vm.STATE_STOPPED), Presence.STOPPED),
        (Vm(state=Vm.STATE_STOPPED, moved_to="host-b"), Presence.LEFT),
        (Vm(state=Vm.STATE_INCOMING, job="migration-in"), None),
        (Vm(state=Vm.STATE_STOPPED, job="migration-in"), None),
        (Vm(state=Vm.STATE_UNKNOWN, job="migration-in"), None),
        (Vm(state=Vm.STATE_RUNNING, job="migration-in"), Presence.RUNS),
    ],
)
async def test_what_a_host_says_of_a_vm_is_where_its_guest_is(vm, presence, monkeypatch):
    agent = Agent("host-b", "127.0.0.1:1", "127.0.0.1:2", None)
    monkeypatch.setattr(agent, "_stub", Stub(vm))

    assert await agent.find_vm("web") is presence
