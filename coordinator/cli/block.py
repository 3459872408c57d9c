"""`ferry block`: the disks of running VMs, their images, and the jobs on them; the hosts' agents are asked directly."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from common.errors import FerryError
from coordinator.cli.block_follow import blocks_of, follow, tell_end
from coordinator.cli.block_view import disks_table, job_details
from coordinator.cli.exits import ExitCode
from coordinator.cli.fleet_vms import find_agent
from coordinator.cli.link import Link, new_request_id
from coordinator.cli.options import DEFAULT_SETTINGS, Bandwidth, Host, Output, Settings, Switch, Vm, bandwidth_of, one_value
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen
from ferry.agent.v1 import block_service_pb2 as pb

if TYPE_CHECKING:
    from coordinator.cli.link import Agent

app = App(name="block", help="Copy, pull, commit and snapshot disks of running VMs; the hosts' agents are asked directly.")
# A snapshot waits until the guest writes to the new image.
SNAPSHOT_TIMEOUT_S = 120.0


class Mode(enum.Enum):
    """What a copy holds."""

    FULL = "full"
    TOP = "top"


Disk = Annotated[str, Parameter(help="Its name, as vda; ferry block ls VM lists them.")]
Detach = Annotated[Switch, Parameter(help="Do not follow the job: say that it has begun, and return.")]
Rate = Annotated[
    int,
    one_value("RATE", bandwidth_of, "As 100MiB/s or 1.5GB/s; 0 for no bound."),
]


@app.command
async def copy(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    /,
    *,
    to: Annotated[str, Parameter(metavar="FILE", help="Absolute path of the new image on the VM's host.")],
    mode: Annotated[Mode, Parameter(help="All that the disk shows, or its uppermost image alone, on the same images.")] = Mode.FULL,
    shallow: Annotated[Switch, Parameter(help="The same as --mode top.")] = False,
    image_format: Annotated[
        str, Parameter(name="--format", metavar="FORMAT", show_default="that of the disk", help="qcow2 or raw.")
    ] = "",
    reuse: Annotated[Switch, Parameter(help="Write into an image of the same size that is there already.")] = False,
    pivot: Annotated[Switch, Parameter(help="Go over to the copy as soon as it is ready.")] = False,
    bandwidth: Bandwidth = None,
    detach: Detach = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Copy a disk to a new image while its guest writes.

    Once both are equal they stay so: ferry block pivot takes the guest to the copy, ferry block abort removes it, and with --keep
    leaves it as it is then. Ctrl-C aborts.
    """
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.CopyDiskRequest(
            request_id=new_request_id(),
            vm=vm,
            disk=disk,
            path=to,
            format=image_format,
            top_only=shallow or mode is Mode.TOP,
            reuse=reuse,
            pivot=pivot,
            bandwidth_bytes_per_second=bandwidth or 0,
        )
        job = (await agent.peer.change(blocks_of(agent).CopyDisk, request)).job
        return await _show_begun(agent, job, output, detach=detach)


@app.command
async def pull(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    /,
    *,
    base: Annotated[str, Parameter(metavar="FILE", show_default="none", help="The image that stays below.")] = "",
    bandwidth: Bandwidth = None,
    detach: Detach = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Take what is below a disk's uppermost image into it, so that it stands on fewer images or on none. Ctrl-C aborts."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.PullDiskRequest(
            request_id=new_request_id(), vm=vm, disk=disk, base=base, bandwidth_bytes_per_second=bandwidth or 0
        )
        job = (await agent.peer.change(blocks_of(agent).PullDisk, request)).job
        return await _show_begun(agent, job, output, detach=detach)


@app.command
async def commit(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    /,
    *,
    base: Annotated[str, Parameter(metavar="FILE", help="The image that gets the data; of the disk's own, below the top.")],
    top: Annotated[
        str, Parameter(metavar="FILE", show_default="the disk's", help="The uppermost image whose data goes down.")
    ] = "",
    pivot: Annotated[Switch, Parameter(help="Of the disk's uppermost image: go over to the base as soon as it is ready.")] = False,
    bandwidth: Bandwidth = None,
    detach: Detach = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Write images down into one below them.

    The base is changed: whatever else stands on it is worth nothing then. Ctrl-C aborts.
    """
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.CommitDiskRequest(
            request_id=new_request_id(),
            vm=vm,
            disk=disk,
            top=top,
            base=base,
            pivot=pivot,
            bandwidth_bytes_per_second=bandwidth or 0,
        )
        job = (await agent.peer.change(blocks_of(agent).CommitDisk, request)).job
        return await _show_begun(agent, job, output, detach=detach)


@app.command
async def snapshot(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    file: Annotated[str, Parameter(help="Absolute path of the new image on the VM's host, where nothing may be yet.")],
    /,
    *,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Put a new image on top of a disk: the guest writes to it, and what is below stays as it is now.

    It is like the disk after a power cut; pause the guest or freeze its file systems for more. ferry block commit takes it back.
    """
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.SnapshotDiskRequest(request_id=new_request_id(), vm=vm, disk=disk, path=file)
        job = (await agent.peer.change(blocks_of(agent).SnapshotDisk, request, timeout_s=SNAPSHOT_TIMEOUT_S)).job
    return tell_end(Screen(), agent, job, output)


@app.command(name="ls")
async def list_disks(
    vm: Annotated[str, Parameter(help="Name or UUID; without it, of all VMs that run.")] = "",
    /,
    *,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """List disks with their images, the uppermost first, and the jobs on them; exit code 1 if a host does not answer."""
    screen = Screen()
    async with Link(settings) as link:
        if vm:
            agents = [await find_agent(link, vm, host)]
        else:
            agents = (
                [await link.agent(host)] if host else [link.agent_at(one.name, one.agent_address) for one in await link.hosts()]
            )
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(_ask(agent, vm)) for agent in agents]
    answers = [task.result() for task in asking]
    for _, _, failure in answers:
        if failure is not None and len(answers) == 1:
            raise failure
    found = [(agent.host, disk) for agent, disks, _ in answers for disk in disks]
    screen.show([{"host": name, **to_plain(disk)} for name, disk in found], lambda: disks_table(found), output)
    for agent, _, error in answers:
        if error:
            screen.warn(f"{agent.host}: {error.text}")
    return ExitCode.REFUSED if any(error for _, _, error in answers) else ExitCode.DONE


@app.command
async def watch(
    vm: Vm,
    disk: Annotated[str, Parameter(help="Its name; without it the job of whatever disk.")] = "",
    /,
    *,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Follow the job on a disk until it is over, or tell of the latest one. Ctrl-C leaves it alone."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        job = (await agent.peer.read(blocks_of(agent).GetBlockJob, pb.GetBlockJobRequest(vm=vm, disk=disk))).job
        return await follow(agent, job, output, aborts=False, until_ready=False)


@app.command(name="set-speed")
async def set_speed(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    rate: Rate,
    /,
    *,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Bound the job on a disk, at once."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.UpdateBlockJobRequest(vm=vm, disk=disk, bandwidth_bytes_per_second=rate)
        job = (await agent.peer.read(blocks_of(agent).UpdateBlockJob, request)).job
    Screen().show({"host": agent.host, **to_plain(job)}, lambda: job_details(agent.host, job), output)
    return ExitCode.DONE


@app.command
async def pivot(
    vm: Vm, disk: Disk, /, *, host: Host = None, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS
) -> ExitCode:
    """Let a disk go over to the copy, or to the base of a commit, that is ready, and wait until it has."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        job = (await agent.peer.read(blocks_of(agent).PivotBlockJob, pb.PivotBlockJobRequest(vm=vm, disk=disk))).job
        return await follow(agent, job, output, aborts=False, until_ready=False)


@app.command
async def abort(  # noqa: PLR0913 -- an option each
    vm: Vm,
    disk: Disk,
    /,
    *,
    keep: Annotated[Switch, Parameter(help="Of a copy that is ready: keep the file, equal to the disk at that moment.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """End the job on a disk without a pivot, and wait until it has ended. A file that was made for it is removed."""
    async with Link(settings) as link:
        agent = await find_agent(link, vm, host)
        request = pb.AbortBlockJobRequest(vm=vm, disk=disk, keep=keep)
        job = (await agent.peer.read(blocks_of(agent).AbortBlockJob, request)).job
        return await follow(agent, job, output, aborts=False, until_ready=False, is_wanted=True)


async def _show_begun(agent: Agent, job: pb.BlockJob, output: Format, *, detach: bool) -> ExitCode:
    if not detach:
        return await follow(agent, job, output, aborts=True, until_ready=not job.pivots_when_ready)
    screen = Screen()
    screen.note(f"begun on {agent.host}; ferry block watch {job.vm_name} {job.disk} follows it")
    if output is not Format.TABLE:
        screen.show({"host": agent.host, **to_plain(job)}, lambda: job_details(agent.host, job), output)
    return ExitCode.DONE


async def _ask(agent: Agent, vm: str) -> tuple[Agent, list[pb.DiskChain], FerryError | None]:
    try:
        response = await agent.peer.read(blocks_of(agent).ListDisks, pb.ListDisksRequest(vm=vm))
    except FerryError as error:
        return agent, [], error
    return agent, list(response.disks), None
