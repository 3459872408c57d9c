"""`ferry vm`."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from cyclopts import App, Parameter

from coordinator.cli import units
from coordinator.cli.adopt import adopt, release
from coordinator.cli.definition_file import read_definition
from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import find_agent, list_vms, the_host
from coordinator.cli.link import CALL_TIMEOUT_S, Link, duration_message, new_request_id
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings, Switch, Vm, duration_of, one_value
from coordinator.cli.plain import to_plain
from coordinator.cli.report import vm_details, vms_table
from coordinator.cli.screen import Format, Screen
from coordinator.cli.twins import refuse_second_definition, refuse_second_guest, uuid_of
from coordinator.cli.vm_control import autostart, console, destroy, pause, reset, resume, set_, show_vm
from coordinator.cli.vm_events import events
from ferry.agent.v1 import control_pb2
from ferry.agent.v1 import vm_pb2 as pb

app = App(name="vm", help="Define, start, stop and list VMs; the hosts' agents are asked directly.")
for command in (destroy, pause, resume, reset, autostart, console, events, adopt, release):
    app.command(command)
app.command(set_, name="set")
_SAVING = "coordinator.cli.vm_saving"
app.command(f"{_SAVING}:save", help="Save a guest to a file, and end its QEMU.")
app.command(f"{_SAVING}:restore", help="Bring a saved guest back.")
app.command(f"{_SAVING}:dump", help="Write a guest's memory to a file for a debugger.")
app.command(f"{_SAVING}:job", help="Show or steer the save, restore or dump of a VM.")
app.command(f"{_SAVING}:discard_saved", name="discard-saved", help="Remove the saved guest that is kept with a VM.")
app.command("coordinator.cli.vm_statistics:migration_stats", help="Show the figures of a VM's migration.")
app.command("coordinator.cli.vm_argv:argv", help="Print the QEMU command line that a definition becomes; no agent is asked.")

DEFAULT_STOP_TIMEOUT_S = Fraction(30)
# Starting may take longer than other calls: an accelerator that is tried for the first time, a saved guest that is read.
START_TIMEOUT_S = 600.0
_STOP_MARGIN_S = 15.0

StopTimeout = Annotated[
    Fraction,
    one_value(
        "TIME",
        duration_of(units.STOP_TIMEOUT),
        "How long the guest may take to power off, 1s to 1h.",
        name="--timeout",
        show_default="30s",
    ),
]


@app.command
async def define(
    file: Annotated[str, Parameter(help="A libvirt domain XML; '-' reads stdin.")],
    /,
    *,
    force: Annotated[
        Switch, Parameter(help="Store it though another host has this VM, or a disk would go over to another image.")
    ] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Store a VM on a host."""
    xml = read_definition(file)
    async with Link(settings) as link:
        agent = await the_host(link, host)
        if not force:
            await refuse_second_definition(link, agent, uuid_of(xml), Screen())
        request = pb.DefineVmRequest(request_id=new_request_id(), domain_xml=xml, force=force)
        vm = (await agent.peer.change(agent.stub.DefineVm, request)).vm
    show_vm(agent, vm, f"{vm.name} defined on {agent.host}", output)
    return ExitCode.DONE


@app.command
async def create(  # noqa: PLR0913 -- an option each
    file: Annotated[str, Parameter(help="A libvirt domain XML; '-' reads stdin.")],
    /,
    *,
    paused: Annotated[Switch, Parameter(help="Leave its vCPUs stopped.")] = False,
    force: Annotated[
        Switch, Parameter(help="Start it also where a guest with its UUID runs, or its disks are newer, on another host.")
    ] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Start a transient VM: nothing of it is stored, and it is gone when it stops. The same as start --transient."""
    xml = read_definition(file)
    async with Link(settings) as link:
        agent = await the_host(link, host)
        if not force:
            await refuse_second_guest(link, agent, uuid_of(xml), Screen())
        request = control_pb2.CreateVmRequest(request_id=new_request_id(), domain_xml=xml, paused=paused, force=force)
        made = (await agent.peer.change(agent.stub.CreateVm, request, timeout_s=START_TIMEOUT_S)).vm
    show_vm(agent, made, f"{made.name} started on {agent.host}, pid {made.pid}; it is gone when it stops", output)
    return ExitCode.DONE


@app.command
async def start(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    paused: Annotated[Switch, Parameter(help="Leave its vCPUs stopped.")] = False,
    transient: Annotated[Switch, Parameter(help="VM is a file of domain XML, as for create.")] = False,
    discard_saved: Annotated[Switch, Parameter(help="Remove its saved guest first, and boot.")] = False,
    force: Annotated[
        Switch,
        Parameter(help="Start it though its guest was moved away, or runs or has newer disks on another host: if you know better."),
    ] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Start a stopped VM; a guest that was saved with save --managed is brought back."""
    if transient:
        return await create(vm, paused=paused, force=force, host=host, output=output, settings=settings)
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        if discard_saved:
            from coordinator.cli.vm_saving import discard  # noqa: PLC0415 -- imported when it is used, as commands are

            await discard(agent, vm)
        if not force:
            known = (await agent.peer.read(agent.stub.GetVm, pb.GetVmRequest(vm=vm))).vm
            await refuse_second_guest(link, agent, known.uuid, Screen())
        request = pb.StartVmRequest(request_id=new_request_id(), vm=vm, paused=paused, force=force)
        started = (await agent.peer.change(agent.stub.StartVm, request, timeout_s=START_TIMEOUT_S)).vm
    show_vm(agent, started, f"{started.name} started on {agent.host}, pid {started.pid}", output)
    return ExitCode.DONE


@app.command
async def stop(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    force: Annotated[Switch, Parameter(help="End its QEMU at once instead, as destroy does.")] = False,
    kill: Annotated[Switch, Parameter(help="End its QEMU when the time is over, or at once if the guest cannot hear.")] = False,
    patience: StopTimeout = DEFAULT_STOP_TIMEOUT_S,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Ask a guest to power off (ACPI), and wait until it has.

    If it has not when the time is over it goes on running, and the exit code is 1; with --kill its QEMU is ended then.
    """
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.StopVmRequest(request_id=new_request_id(), vm=vm, force=force, timeout=duration_message(patience), kill=kill)
        timeout_s = max(CALL_TIMEOUT_S, float(patience) + _STOP_MARGIN_S)
        stopped = (await agent.peer.change(agent.stub.StopVm, request, timeout_s=timeout_s)).vm
    show_vm(agent, stopped, f"{stopped.name} stopped on {agent.host}", output)
    return ExitCode.DONE


@app.command
async def undefine(
    vm: Vm,
    /,
    *,
    force: Annotated[Switch, Parameter(help="Remove it also where what is on record of it cannot be read.")] = False,
    host: Host = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Remove the definition of a VM; its disks stay. One that runs goes on and is gone when it stops."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.UndefineVmRequest(request_id=new_request_id(), vm=vm, force=force)
        await agent.peer.change(agent.stub.UndefineVm, request)
    Screen().note(f"{vm} undefined on {agent.host}")
    return ExitCode.DONE


@app.command(name="ls")
async def list_all(*, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """List the VMs of one host or of all; exit code 1 if a host does not answer, or what is on record of a VM cannot be read."""
    screen = Screen()
    async with Link(settings) as link:
        answers = await list_vms(link, host)
    found = [(answer.agent.host, vm) for answer in answers for vm in answer.vms]
    screen.show([{"host": name, **to_plain(vm)} for name, vm in found], lambda: vms_table(found), output)
    silent = [answer for answer in answers if answer.error]
    for answer in silent:
        screen.warn(f"{answer.agent.host}: {answer.error}")
    unread = [(name, vm) for name, vm in found if vm.problems]
    for name, vm in unread:
        screen.warn(f"{vm.name} on {name}: {'; '.join(vm.problems)}; ferry doctor says what to do")
    return ExitCode.REFUSED if silent or unread else ExitCode.DONE


@app.command
async def show(vm: Vm, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Show one VM in full, with QEMU's command line and its files."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        found = (await agent.peer.read(agent.stub.GetVm, pb.GetVmRequest(vm=vm))).vm
    screen = Screen()
    screen.show({"host": agent.host, **to_plain(found)}, lambda: vm_details(agent.host, found), output)
    for problem in found.problems:
        screen.warn(f"{problem}; ferry doctor says what to do")
    return ExitCode.REFUSED if found.problems else ExitCode.DONE
