"""`ferry vm`: guests saved to files, brought back, dumped, and the jobs that do it. The commands are added to the tree in `vms`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from common.errors import InvalidRequest
from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import find_agent, the_host
from coordinator.cli.link import Agent, Link, new_request_id
from coordinator.cli.options import DEFAULT_SETTINGS, Bandwidth, Host, Output, Settings, Switch, Vm, bandwidth_of, one_value
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen
from coordinator.cli.twins import refuse_second_guest
from coordinator.cli.vm_jobs import follow, job_details, saves_of
from ferry.agent.v1 import save_service_pb2 as pb

File = Annotated[str, Parameter(help="Absolute path on the VM's host.")]
NewBandwidth = Annotated[
    int | None,
    one_value("RATE", bandwidth_of, "Bound of a save that runs, as 100MiB/s or 1.5GB/s; 0 for none.", name="--set-bandwidth"),
]


async def save(  # noqa: PLR0913 -- an option each
    vm: Vm,
    file: Annotated[str, Parameter(help="Absolute path on the VM's host, where nothing may be yet.")] = "",
    /,
    *,
    managed: Annotated[Switch, Parameter(help="Keep the guest with the VM: its next start brings it back.")] = False,
    bandwidth: Bandwidth = None,
    mapped_ram: Annotated[Switch, Parameter(help="Write QEMU's mapped-ram format, which QEMU before 9.0 cannot.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Save a guest to a file, and end its QEMU. Ctrl-C cancels, and the guest runs on."""
    if managed is bool(file):
        raise InvalidRequest("say either FILE or --managed", reason="VALUE_INVALID")
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.SaveVmRequest(
            request_id=new_request_id(),
            vm=vm,
            path=file,
            managed=managed,
            bandwidth_bytes_per_second=bandwidth or 0,
            mapped_ram=mapped_ram,
        )
        return await follow(agent, (await agent.peer.change(saves_of(agent).SaveVm, request)).job, output)


async def restore(  # noqa: PLR0913 -- an option each
    file: File,
    /,
    *,
    paused: Annotated[Switch, Parameter(help="Leave its vCPUs stopped.")] = False,
    force: Annotated[
        Switch, Parameter(help="Restore it also where a guest with its UUID runs, or its disks are newer, on another host.")
    ] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Bring a saved guest back; the file stays. Every byte of it is checked first."""
    async with Link(settings) as link:
        agent = await the_host(link, host)
        if not force:
            asked = pb.RestoreVmRequest(path=file, dry_run=True)
            saved = (await agent.peer.read(saves_of(agent).RestoreVm, asked)).job
            await refuse_second_guest(link, agent, saved.vm_uuid, Screen())
        request = pb.RestoreVmRequest(request_id=new_request_id(), path=file, paused=paused, force=force)
        return await follow(agent, (await agent.peer.change(saves_of(agent).RestoreVm, request)).job, output)


async def dump(  # noqa: PLR0913 -- an option each
    vm: Vm,
    file: File,
    /,
    *,
    file_format: Annotated[str, Parameter(name="--format", metavar="FORMAT", help="As elf or kdump-zlib.")] = "elf",
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Write a guest's memory to a file for a debugger. The guest stands still meanwhile; this cannot be cancelled."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.DumpVmRequest(request_id=new_request_id(), vm=vm, path=file, format=file_format)
        return await follow(agent, (await agent.peer.change(saves_of(agent).DumpVm, request)).job, output)


async def job(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    cancel: Annotated[Switch, Parameter(help="Cancel it, and wait until it is over.")] = False,
    set_bandwidth: NewBandwidth = None,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Show or steer the save, restore or dump of a VM, the latest if none runs."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        saves = saves_of(agent)
        if set_bandwidth is not None:
            request = pb.UpdateVmJobRequest(vm=vm, bandwidth_bytes_per_second=set_bandwidth)
            found = (await agent.peer.read(saves.UpdateVmJob, request)).job
        elif cancel:
            found = (await agent.peer.read(saves.CancelVmJob, pb.CancelVmJobRequest(vm=vm))).job
            async for response in agent.peer.follow(saves.WatchVmJob, pb.WatchVmJobRequest(vm=found.id)):
                found = response.job
        else:
            found = (await agent.peer.read(saves.GetVmJob, pb.GetVmJobRequest(vm=vm))).job
    Screen().show({"host": agent.host, **to_plain(found)}, lambda: job_details(agent.host, found), output)
    return ExitCode.REFUSED if cancel and found.state != pb.VmJob.STATE_CANCELLED else ExitCode.DONE


async def discard_saved(vm: Vm, /, *, host: Host = None, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Remove the saved guest that is kept with a VM; its next start boots."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        await discard(agent, vm)
    Screen().note(f"{vm}: saved guest discarded on {agent.host}")
    return ExitCode.DONE


async def discard(agent: Agent, vm: str) -> None:
    """Remove the saved guest of a VM."""
    await agent.peer.change(saves_of(agent).DiscardSavedVm, pb.DiscardSavedVmRequest(request_id=new_request_id(), vm=vm))
