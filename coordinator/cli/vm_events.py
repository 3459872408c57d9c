"""`ferry vm events`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from common.errors import FerryError
from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Link
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings, Switch
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen, columns
from ferry.agent.v1 import control_pb2 as pb
from ferry.agent.v1 import vm_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from coordinator.cli.link import Agent

_QUEUE_LENGTH = 1000
Found = tuple[str, vm_pb2.VmEvent]


async def events(
    vm: Annotated[str, Parameter(help="Name or UUID; without it, of all VMs.")] = "",
    /,
    *,
    follow: Annotated[Switch, Parameter(help="Go on with what happens from now on, until Ctrl-C; one line an event.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Show what happened to VMs, as far back as their agents remember: a thousand events, or their own last start."""
    screen = Screen()
    async with Link(settings) as link:
        agents = [await link.agent(host)] if host else [link.agent_at(one.name, one.agent_address) for one in await link.hosts()]
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(_held(agent)) for agent in agents]
        answers = [task.result() for task in asking]
        found = sorted(
            ((agent.host, event) for agent, held, _ in answers for event in held if _is_of(event, vm)),
            key=lambda one: one[1].create_time.ToNanoseconds(),
        )
        for agent, _, error in answers:
            if error:
                screen.warn(f"{agent.host}: {error}")
        if not follow:
            screen.show([{"host": name, **to_plain(event)} for name, event in found], lambda: _table(found), output)
            return ExitCode.REFUSED if any(error for _, _, error in answers) else ExitCode.DONE
        for one in found:
            _line(screen, *one, output)
        await _follow(screen, [(agent, held) for agent, held, error in answers if not error], vm, output)
    return ExitCode.DONE


async def _held(agent: Agent) -> tuple[Agent, list[vm_pb2.VmEvent], str]:
    try:
        response = await agent.peer.read(agent.stub.ListEvents, pb.ListEventsRequest())
    except FerryError as error:
        return agent, [], error.text
    return agent, list(response.events), ""


async def _follow(screen: Screen, agents: list[tuple[Agent, list[vm_pb2.VmEvent]]], vm: str, output: Format) -> None:
    queue: asyncio.Queue[Found] = asyncio.Queue(_QUEUE_LENGTH)

    async def listen(agent: Agent, after: int) -> None:
        try:
            request = vm_pb2.WatchEventsRequest(after_sequence=after)
            async for response in agent.peer.follow(agent.stub.WatchEvents, request):
                await queue.put((agent.host, response.event))
        except FerryError as error:
            screen.warn(f"{agent.host}: {error.text}")

    async def tell() -> None:
        while True:
            name, event = await queue.get()
            if _is_of(event, vm):
                _line(screen, name, event, output)

    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(tell())
        listening = [tasks.create_task(listen(agent, held[-1].sequence if held else 0)) for agent, held in agents]
        await asyncio.wait(listening)
        telling.cancel()


def _is_of(event: vm_pb2.VmEvent, vm: str) -> bool:
    return not vm or vm in (event.vm_name, event.vm_uuid)


def _line(screen: Screen, host: str, event: vm_pb2.VmEvent, output: Format) -> None:
    """Write one event; for programs a JSON document a line, or a YAML document each."""
    if output is Format.TABLE:
        time, name, place, what, detail = _cells(host, event)
        screen.line(f"{time}  {place:10}  {name:20}  {what}{f': {detail}' if detail else ''}")
    else:
        screen.show_line({"host": host, **to_plain(event)}, output)


def _table(found: Iterable[Found]) -> Table:
    return columns(("TIME (UTC)", "VM", "HOST", "EVENT", "DETAIL"), [_cells(*one) for one in found])


def _cells(host: str, event: vm_pb2.VmEvent) -> tuple[str, str, str, str, str]:
    at = datetime.fromtimestamp(event.create_time.ToSeconds(), UTC).strftime("%Y-%m-%d %H:%M:%S")
    return at, event.vm_name, host, f"{event.event.lower()}/{event.reason.lower().replace('_', '-')}", event.detail
