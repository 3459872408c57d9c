"""What the user of a guest does to it, by its host's agent."""

from __future__ import annotations

from uuid import uuid4

from common.rpc.status import calls_to
from ferry.agent.v1 import control_pb2
from tests.e2e.lab import Lab


async def pause(lab: Lab, host: str, vm: str = "web") -> None:
    """Let a guest stand still."""
    with calls_to(f"the agent of {host}"):
        await lab.agents[host].PauseVm(control_pb2.PauseVmRequest(request_id=str(uuid4()), vm=vm))


async def resume(lab: Lab, host: str, vm: str = "web") -> None:
    """Let a guest run on."""
    with calls_to(f"the agent of {host}"):
        await lab.agents[host].ResumeVm(control_pb2.ResumeVmRequest(request_id=str(uuid4()), vm=vm))
