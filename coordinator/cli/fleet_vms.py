"""Finding VMs on the hosts of the fleet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import FerryError, InvalidRequest, NotFound, Unreachable
from ferry.agent.v1 import vm_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.cli.link import Agent, Link

LIST_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class HostVms:
    """What one host answered: its VMs, or why they are not known."""

    agent: Agent
    vms: tuple[pb.Vm, ...]
    error: str


async def list_vms(link: Link, host: str | None) -> tuple[HostVms, ...]:
    """Ask one host, or all of the fleet at once, for their VMs.

    Raises:
        FerryError: the coordinator does not tell the hosts, or the one host asked does not answer.
    """
    if host is not None:
        asked = await ask_vms(await link.agent(host))
        if asked.error:
            raise Unreachable(asked.error)
        return (asked,)
    agents = [link.agent_at(known.name, known.agent_address) for known in await link.hosts()]
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask_vms(agent)) for agent in agents]
    return tuple(task.result() for task in asking)


async def find_agent(link: Link, vm: str, host: str | None) -> Agent:
    """Find the host that has a VM, by name or UUID; a named host is taken at its word.

    Raises:
        NotFound: no host that answers has it.
        InvalidRequest: several have it; the text names them.
    """
    if host is not None:
        return await link.agent(host)
    answers = await list_vms(link, None)
    found = [(answer.agent, known) for answer in answers for known in answer.vms if vm in (known.name, known.uuid)]
    # While it moves it is on both hosts, and no guest yet at the destination; a definition that stayed behind is none either.
    at_home = [(agent, known) for agent, known in found if known.state != pb.Vm.STATE_INCOMING and not known.moved_to]
    having = [agent for agent, _ in at_home or found]
    if len(having) > 1:
        names = ", ".join(agent.host for agent in having)
        raise InvalidRequest(f"VM {vm!r} is on several hosts: {names}; say which with --host", reason="VM_AMBIGUOUS", vm=vm)
    if not having:
        raise NotFound(f"VM {vm!r} is on no host that answers{_silent(answers)}", reason="VM_UNKNOWN", vm=vm)
    return having[0]


async def the_host(link: Link, host: str | None) -> Agent:
    """Take the named host, or the only one that there is.

    Raises:
        InvalidRequest: none is named and there are several, or none.
    """
    if host is not None:
        return await link.agent(host)
    hosts = await link.hosts()
    if len(hosts) != 1:
        names = ", ".join(known.name for known in hosts) or "none"
        raise InvalidRequest(f"say on which host with --host; known hosts: {names}", reason="HOST_AMBIGUOUS")
    return link.agent_at(hosts[0].name, hosts[0].agent_address)


async def ask_vms(agent: Agent, *, timeout_s: float = LIST_TIMEOUT_S) -> HostVms:
    """Ask one host for its VMs."""
    try:
        response = await agent.peer.read(agent.stub.ListVms, pb.ListVmsRequest(), timeout_s=timeout_s)
    except FerryError as error:
        return HostVms(agent, (), error.text)
    return HostVms(agent, tuple(response.vms), "")


def _silent(answers: Iterable[HostVms]) -> str:
    silent = [answer.agent.host for answer in answers if answer.error]
    return f" (no answer from {', '.join(silent)})" if silent else ""
