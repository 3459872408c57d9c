"""`ferry vm adopt` and `ferry vm release`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import find_agent, the_host
from coordinator.cli.link import Link, new_request_id
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings, Switch, Vm
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen
from ferry.agent.v1 import adoption_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

# It is asked many small questions, and may be slow.
ADOPT_TIMEOUT_S = 60.0


async def adopt(  # noqa: PLR0913 -- an option each
    *,
    qmp: Annotated[str, Parameter(metavar="PATH", help="A free QMP socket of the QEMU, as an absolute path on its host.")],
    name: Annotated[str, Parameter(help="Name of the VM; default: what -name says, else qemu-PID.")] = "",
    dry_run: Annotated[Switch, Parameter(help="Only say what would be done.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Take over a running QEMU that somebody else started; it becomes a VM until it ends, moves or is released."""
    async with Link(settings) as link:
        agent = await the_host(link, host)
        request = pb.AdoptVmRequest(request_id=new_request_id(), qmp_path=qmp, name=name, dry_run=dry_run)
        response = await agent.peer.change(agent.stub.AdoptVm, request, timeout_s=ADOPT_TIMEOUT_S)
    screen, plan = Screen(), response.plan
    if dry_run or output is not Format.TABLE:
        screen.show({"host": agent.host, **to_plain(response)}, lambda: Text(_plan_text(plan)), output)
    if not dry_run:
        screen.note(f"{plan.name} adopted on {agent.host}, pid {plan.pid}")
    for blocker in plan.blockers:
        screen.warn(f"it cannot migrate: {blocker}")
    return ExitCode.DONE


async def release(vm: Vm, /, *, host: Host = None, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Let go of an adopted VM; it runs on and its QMP socket is free."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.ReleaseVmRequest(request_id=new_request_id(), vm=vm)
        released = await agent.peer.change(agent.stub.ReleaseVm, request)
    Screen().note(f"{vm} released on {agent.host}: pid {released.pid} runs on, its QMP socket {released.qmp_path} is free")
    return ExitCode.DONE


def _plan_text(plan: pb.AdoptionPlan) -> str:
    parts = [
        f"{plan.name}, pid {plan.pid}\n",
        _section("command line on another host", _lines_of(plan.argv)),
        _section("not carried", plan.dropped),
        _section("written otherwise", plan.changed),
        _section("cannot migrate", plan.blockers),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, lines: Iterable[str]) -> str:
    text = "".join(f"  {line}\n" for line in lines)
    return f"{title}:\n{text}" if text else ""


def _lines_of(argv: Iterable[str]) -> list[str]:
    """Write an option and its argument on each line, as a shell takes them."""
    lines: list[str] = []
    for word in argv:
        if not lines or word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines
