"""The disks of a running VM as QEMU has them now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.blockjobs.chain import Chain, check_known, read_chain
from agent.blockjobs.definitions import find_disk
from agent.qemu.block_commands import BlockCommands
from common.errors import Busy, NotFound, WrongState

if TYPE_CHECKING:
    from agent.qemu.block_graph import Graph
    from agent.qemu.block_status import DriveReport
    from agent.vm.definition import Disk
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm


@dataclass(frozen=True, slots=True)
class SeenDisk:
    """A disk and what is behind it; `chain` is None without a medium."""

    disk: Disk
    chain: Chain | None
    jobs: frozenset[str]


def commands_of(vms: Vms, vm: Vm) -> BlockCommands:
    """Get the commands about the disks of a running VM.

    Raises:
        WrongState: it does not run.
    """
    return BlockCommands(vms.qemu(vm).monitor)


def get_disk(vm: Vm, target: str) -> Disk:
    """Get a disk of a running VM by the name that people use.

    Raises:
        WrongState: it does not run, or the disk is a `-drive`, which has no block node of its own.
        NotFound: it has none of this name; the text lists those that it has.
    """
    definition = vm.get_running().definition
    found = find_disk(definition, target)
    if found is not None:
        return found
    if any(option.get("id") == target for option in definition.find("drive")):
        raise WrongState(
            f"disk {target} of VM {vm.name} was given as a -drive; only disks of a -blockdev can be worked on",
            reason="DISK_NOT_CARRIED",
            vm=vm.name,
            disk=target,
        )
    known = ", ".join(disk.target for disk in definition.disks) or "none"
    raise NotFound(f"VM {vm.name} has no disk {target[:80]}; its disks: {known}", reason="DISK_UNKNOWN", vm=vm.name, disk=target)


async def see_disks(vm: Vm, commands: BlockCommands) -> tuple[SeenDisk, ...]:
    """Look at all disks of a VM, in the order of its definition."""
    drives, graph = await commands.query_drives(), await commands.query_graph()
    return tuple(_see(disk, drives, graph) for disk in vm.get_running().definition.disks)


async def _see_disk(commands: BlockCommands, disk: Disk) -> SeenDisk:
    drives, graph = await commands.query_drives(), await commands.query_graph()
    return _see(disk, drives, graph)


async def get_chain(vm: Vm, commands: BlockCommands, disk: Disk) -> Chain:
    """Look at a disk that a job is to work on.

    Raises:
        WrongState: it has no medium, is read-only, or other VMs may write to it.
        Busy: a job that is not ours works on it.
    """
    seen = await _see_disk(commands, disk)
    named = f"disk {disk.target} of VM {vm.name}"
    if seen.chain is None:
        raise WrongState(f"{named} has no medium", reason="DISK_EMPTY", disk=disk.target)
    if seen.chain.is_read_only:
        raise WrongState(f"{named} is read-only: {seen.chain.top.path}", reason="DISK_READ_ONLY", disk=disk.target)
    if disk.is_shareable:
        text = f"{named} is shareable: what other VMs write to it would be missed"
        raise WrongState(text, reason="DISK_SHARED", disk=disk.target)
    if seen.jobs:
        raise Busy(
            f"{named} is busy: QEMU has the job {', '.join(sorted(seen.jobs))} on it, which Ferry has not begun",
            reason="DISK_BUSY",
            disk=disk.target,
        )
    check_known(seen.chain, disk.target, vm.name)
    return seen.chain


def _see(disk: Disk, drives: tuple[DriveReport, ...], graph: Graph) -> SeenDisk:
    drive = find_drive(drives, disk.device, disk.node)
    chain = None if drive is None else read_chain(drive, graph)
    if chain is None:
        return SeenDisk(disk, None, frozenset())
    nodes = frozenset(name for layer in chain.layers for name in (layer.node, layer.file_node) if name)
    return SeenDisk(disk, chain, graph.jobs_of(nodes | {*chain.filters}))


def find_drive(drives: tuple[DriveReport, ...], device: str, node: str) -> DriveReport | None:
    """Find the drive behind a device, or with a node where the device has no id."""
    return next((drive for drive in drives if drive.is_of(device) or (not device and drive.node == node)), None)
