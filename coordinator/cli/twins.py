"""One VM on two hosts: looked for before one is made, and found where there is one. Hosts that do not answer are named.

UUIDs tell VMs apart in a fleet. Two guests of one UUID are two copies of one machine: they write to the same shared disks, or drift
apart.
"""

from __future__ import annotations

import asyncio
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.errors import FerryError, WrongState
from coordinator.cli.fleet_vms import HostVms, ask_vms
from ferry.agent.v1 import vm_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.cli.link import Agent, Link
    from coordinator.cli.screen import Screen

LOOK_TIMEOUT_S: Final = 3.0
_GONE: Final = frozenset({pb.Vm.STATE_STOPPED, pb.Vm.STATE_CRASHED})


def uuid_of(xml: bytes) -> str:
    """Read the UUID of a domain; empty where it has none, or the agent is going to refuse the XML anyway."""
    try:
        found = ET.fromstring(xml).findtext("uuid", "")  # noqa: S314 -- the user's own file; expat bounds what entities become
        return str(uuid.UUID(found.strip())) if found.strip() else ""
    except (ET.ParseError, ValueError):
        return ""


async def refuse_second_definition(link: Link, agent: Agent, vm_uuid: str, screen: Screen) -> None:
    """Refuse to define a VM on a host where another host has it; one that the host has already is defined anew.

    Raises:
        WrongState: another host has it.
    """
    answers = await _look(link, screen) if vm_uuid else ()
    if any(vm.uuid == vm_uuid for answer in answers for vm in answer.vms if _is_of(answer, agent)):
        return
    for answer in answers:
        for vm in answer.vms:
            if vm.uuid == vm_uuid and not _is_of(answer, agent):
                raise WrongState(
                    f"UUID {vm_uuid} is that of VM {vm.name} on {answer.agent.host}: defined on {agent.host} too it could run "
                    f"twice; leave <uuid> out for a VM of its own, move the other one (ferry migrate {vm.name} --to {agent.host}, "
                    "with --offline where it is stopped), or say --force",
                    reason="VM_EXISTS_ELSEWHERE",
                    vm=vm.name,
                    host=answer.agent.host,
                )


async def refuse_second_guest(link: Link, agent: Agent, vm_uuid: str, screen: Screen) -> None:
    """Refuse to start a guest on a host that runs on another one.

    Raises:
        WrongState: it runs there, or may.
    """
    for answer in await _look(link, screen) if vm_uuid else ():
        for vm in answer.vms:
            if vm.uuid == vm_uuid and not _is_of(answer, agent) and vm.state not in _GONE:
                raise WrongState(
                    f"VM {vm.name} ({vm_uuid}) runs on {answer.agent.host}: a second guest of it on {agent.host} would write "
                    f"to the same shared disks, or drift apart; move it (ferry migrate {vm.name} --to {agent.host}), stop it there "
                    f"first (ferry vm stop {vm.name} --host {answer.agent.host}), or say --force",
                    reason="VM_RUNS_ELSEWHERE",
                    vm=vm.name,
                    host=answer.agent.host,
                )


@dataclass(frozen=True, slots=True)
class Pair:
    """A VM that several hosts have; `advice` is what to do."""

    hosts: tuple[str, ...]
    vm: str
    is_running_twice: bool
    text: str
    advice: str


def pairs(answers: Iterable[HostVms]) -> tuple[Pair, ...]:
    """List the VMs that several hosts have.

    Those that are on their way are none, nor is a definition that stayed when its guest left.
    """
    having: dict[str, list[tuple[str, pb.Vm]]] = {}
    for answer in answers:
        for vm in answer.vms:
            having.setdefault(vm.uuid, []).append((answer.agent.host, vm))
    found = []
    for vm_uuid, places in having.items():
        if len(places) < 2 or any(vm.migration_id or vm.state == pb.Vm.STATE_INCOMING for _, vm in places):  # noqa: PLR2004 -- a pair
            continue
        running = tuple(host for host, vm in places if vm.state not in _GONE)
        idle = tuple(host for host, vm in places if vm.state in _GONE and not vm.moved_to)
        name = places[0][1].name
        if len(running) > 1:
            text = f"runs on {' and on '.join(running)} with one UUID, {vm_uuid}: two guests, on shared disks each other's end"
            advice = f"find out which one is right, and end the other: ferry vm destroy {name} --host HOST"
            found.append(Pair(running, name, True, text, advice))  # noqa: FBT003 -- of a record
        elif len(running) + len(idle) > 1:
            hosts = (*running, *idle)
            text = f"is defined on {' and on '.join(hosts)} with one UUID, {vm_uuid}: it could run twice"
            advice = f"remove the one that is not wanted: ferry vm undefine {name} --host {idle[-1]}"
            found.append(Pair(hosts, name, False, text, advice))  # noqa: FBT003 -- of a record
    return tuple(found)


async def _look(link: Link, screen: Screen) -> tuple[HostVms, ...]:
    """Ask the hosts of the fleet at once; those that do not answer, or whose names nobody tells, are named to the user."""
    try:
        hosts = await link.hosts()
    except FerryError as error:
        screen.warn(f"whether another host has this VM is not known: {error.text}")
        return ()
    agents = [link.agent_at(one.name, one.agent_address) for one in hosts]
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask_vms(agent, timeout_s=LOOK_TIMEOUT_S)) for agent in agents]
    answers = tuple(task.result() for task in asking)
    for answer in answers:
        if answer.error:
            screen.warn(f"whether {answer.agent.host} has this VM is not known: {answer.error}")
    return answers


def _is_of(answer: HostVms, agent: Agent) -> bool:
    return answer.agent.address == agent.address
