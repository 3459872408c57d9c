"""`ferry vm`: what is done to VMs that are there. The commands are added to the tree in `vms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from common.errors import InvalidRequest
from coordinator.cli.console import attach
from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import find_agent
from coordinator.cli.link import Link, new_request_id
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings, Switch, Vm, one_value, whole_number
from coordinator.cli.plain import to_plain
from coordinator.cli.report import vms_table
from coordinator.cli.screen import Format, Screen
from ferry.agent.v1 import console_pb2, vm_pb2
from ferry.agent.v1 import control_pb2 as pb

if TYPE_CHECKING:
    from coordinator.cli.link import Agent

Shares = Annotated[
    int | None,
    one_value(
        "N",
        whole_number,
        "Its weight among others when CPUs are short: 2 to 262144 where the host has cgroup v1, 1 to 10000 where it has v2.",
        name="--cpu-shares",
    ),
]


async def destroy(
    vm: Vm, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS
) -> ExitCode:
    """End a VM's QEMU at once, as pulling the plug does."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = vm_pb2.StopVmRequest(request_id=new_request_id(), vm=vm, force=True)
        stopped = (await agent.peer.change(agent.stub.StopVm, request)).vm
    show_vm(agent, stopped, f"{stopped.name} destroyed on {agent.host}", output)
    return ExitCode.DONE


async def pause(vm: Vm, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Stop a guest's vCPUs; its memory stays where it is."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        paused = (await agent.peer.change(agent.stub.PauseVm, pb.PauseVmRequest(request_id=new_request_id(), vm=vm))).vm
    show_vm(agent, paused, f"{paused.name} paused on {agent.host}", output)
    return ExitCode.DONE


async def resume(vm: Vm, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Let a paused guest go on."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        resumed = (await agent.peer.change(agent.stub.ResumeVm, pb.ResumeVmRequest(request_id=new_request_id(), vm=vm))).vm
    show_vm(agent, resumed, f"{resumed.name} resumed on {agent.host}", output)
    return ExitCode.DONE


async def reset(vm: Vm, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Press a guest's reset button; it starts anew without being asked."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        done = (await agent.peer.change(agent.stub.ResetVm, pb.ResetVmRequest(request_id=new_request_id(), vm=vm))).vm
    show_vm(agent, done, f"{done.name} reset on {agent.host}", output)
    return ExitCode.DONE


async def autostart(
    vm: Vm,
    /,
    *,
    off: Annotated[Switch, Parameter(help="Start it by hand only.")] = False,
    host: Host = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Start a VM with its host: when the agent starts, once for each boot of the host."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.SetVmRequest(request_id=new_request_id(), vm=vm, autostart=not off)
        changed = (await agent.peer.change(agent.stub.SetVm, request)).vm
    Screen().note(f"{changed.name} {'does not start' if off else 'starts'} with {agent.host}")
    return ExitCode.DONE


async def set_(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    cpu_shares: Shares = None,
    live: Annotated[Switch, Parameter(help="Only now.")] = False,
    config: Annotated[Switch, Parameter(help="Only from the next start on.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Change tunables of a VM, now if it runs and for its next start if it is persistent."""
    if cpu_shares is None:
        raise InvalidRequest("nothing to set: say what, as --cpu-shares 2048", reason="VALUE_INVALID")
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        is_both = live is config
        request = pb.SetVmRequest(request_id=new_request_id(), vm=vm, cpu_shares=cpu_shares, live=live, config=config)
        if is_both:
            known = (await agent.peer.read(agent.stub.GetVm, vm_pb2.GetVmRequest(vm=vm))).vm
            request.live, request.config = known.pid != 0, known.is_persistent
        changed = (await agent.peer.change(agent.stub.SetVm, request)).vm
    show_vm(agent, changed, _shares_words(changed, request), output)
    return ExitCode.DONE


async def console(
    vm: Vm,
    /,
    *,
    device: Annotated[str, Parameter(metavar="LINE", help="The line, as serial0 or console1; by default the first.")] = "",
    force: Annotated[Switch, Parameter(help="Take the line over from the client that has it.")] = False,
    host: Host = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Use a guest's serial line in this terminal; Ctrl-] leaves. The line has to be of type pty or unix."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        ended = await attach(agent, console_pb2.ConsoleOpening(vm=vm, device=device, force=force))
    Screen().note(ended)
    return ExitCode.DONE


def show_vm(agent: Agent, vm: vm_pb2.Vm, text: str, output: Format) -> None:
    """Show what became of a VM: words for people, the VM for programs."""
    screen = Screen()
    screen.note(text)
    if output is not Format.TABLE:
        screen.show({"host": agent.host, **to_plain(vm)}, lambda: vms_table([(agent.host, vm)]), output)


def _shares_words(vm: vm_pb2.Vm, request: pb.SetVmRequest) -> str:
    words = []
    if request.live:
        words.append(f"{vm.cpu_shares} now")
    if request.config:
        words.append(f"{vm.next_cpu_shares} from its next start on")
    clamped = (
        "" if request.cpu_shares in (vm.cpu_shares, vm.next_cpu_shares) else f" (the kernel does not take {request.cpu_shares})"
    )
    return f"{vm.name}: cpu shares {', '.join(words)}{clamped}"
