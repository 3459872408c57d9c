"""`ferry doctor`: what is left over on the hosts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from common.errors import FerryError
from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import ask_vms
from coordinator.cli.link import Link
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen, columns
from coordinator.cli.twins import pairs
from coordinator.cli.undriven import undriven_sides
from ferry.agent.v1 import doctor_service_pb2 as pb
from ferry.agent.v1 import doctor_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from coordinator.cli.link import Agent
    from coordinator.cli.twins import Pair

TIMEOUT_S = 60.0


async def doctor(*, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Look for what no running work of Ferry owns.

    That is jobs, block nodes, exports and NBD servers in QEMUs, partial files, broken records, stopped VMs whose disks are newer on
    another host, VMs that two hosts have, and sides of migrations that no coordinator drives.

    Nothing is changed; each finding says what to do. Exit code 0 when there is nothing, 1 when there is, or a host does not answer.
    """
    screen = Screen()
    async with Link(settings) as link:
        agents = [await link.agent(host)] if host else [link.agent_at(one.name, one.agent_address) for one in await link.hosts()]
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(_ask(agent, link)) for agent in agents]
            listing = [] if host else [tasks.create_task(ask_vms(agent)) for agent in agents]
    answers = [task.result() for task in asking]
    found = [(agent.host, finding) for agent, response, _ in answers for finding in response.findings]
    found += [(", ".join(pair.hosts), _finding(pair)) for pair in pairs(task.result() for task in listing)]
    if output is not Format.TABLE or found:
        rows = [(name, one.vm_name or "-", one.kind.lower().replace("_", "-"), one.text, one.advice) for name, one in found]
        table = lambda: columns(("HOST", "VM", "FOUND", "WHAT", "TO DO"), rows)  # noqa: E731 -- made only for people
        screen.show([{"host": name, **to_plain(one)} for name, one in found], table, output)
    silent = [(agent, error) for agent, _, error in answers if error]
    for agent, error in silent:
        screen.warn(f"{agent.host}: {error}")
    if not found and not silent:
        count = sum(response.vm_count for _, response, _ in answers)
        hosts = "1 host" if len(answers) == 1 else f"{len(answers)} hosts"
        screen.note(f"nothing is left over: {hosts}, {count} {'VM' if count == 1 else 'VMs'}")
    return ExitCode.REFUSED if found or silent else ExitCode.DONE


def _finding(pair: Pair) -> pb.Finding:
    kind = "RUNS_TWICE" if pair.is_running_twice else "DEFINED_TWICE"
    return pb.Finding(vm_name=pair.vm, kind=kind, name=pair.vm, text=pair.text, advice=pair.advice)


async def _ask(agent: Agent, link: Link) -> tuple[Agent, pb.ExamineResponse, str]:
    try:
        stub = rpc.DoctorServiceStub(agent.peer.channel)
        response = await agent.peer.read(stub.Examine, pb.ExamineRequest(), timeout_s=TIMEOUT_S)
        response.findings.extend(await undriven_sides(agent, link))
    except FerryError as error:
        return agent, pb.ExamineResponse(), error.text
    return agent, response, ""
