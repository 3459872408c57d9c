"""Saving a guest: it is stopped, QEMU writes it, the file is sealed, QEMU ends.

guest runs --stop, write, seal--> complete file in its place --quit--> no QEMU
     ^---- failed, cancelled: no file, the guest runs on ----'
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.qemu.files import release_fds
from agent.qemu.status import RunState
from agent.saving import part
from agent.saving.file_size import follow_size
from agent.saving.save_file import SavedGuest, seal
from agent.saving.transfer import MAPPED_RAM, run_on, stay_stopped, write_guest
from common.errors import WrongState
from common.tasks import OwnedTasks

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.commands import Qemu
    from agent.saving.work import Work
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

# Where the guest stands still by a user's will.
_PAUSED = frozenset({RunState.PAUSED, RunState.PRELAUNCH})


@dataclass(frozen=True, slots=True)
class SaveOrder:
    """What a user wishes; a bound of 0 is none."""

    path: Path
    bandwidth_bytes_per_second: int = 0
    is_mapped_ram: bool = False


async def find_guest_runs(qemu: Qemu, vm: Vm, what: str) -> bool:
    """Say whether the guest runs.

    Raises:
        WrongState: it neither runs nor is paused, so it could not be brought back to where it was.
    """
    state = await qemu.query_status()
    if state is not RunState.RUNNING and state not in _PAUSED:
        raise WrongState(f"VM {vm.name} is {state.value}; only a guest that runs or is paused can be {what}", vm=vm.name)
    return state is RunState.RUNNING


async def check_can_save(vms: Vms, vm: Vm, *, is_mapped_ram: bool) -> None:
    """Require that QEMU can write this guest.

    Raises:
        WrongState: a device of it cannot be saved, or this QEMU does not know the format.
    """
    qemu = vms.qemu(vm)
    if is_mapped_ram and MAPPED_RAM not in await qemu.query_capabilities():
        raise WrongState(
            f"QEMU {await qemu.query_version()} of VM {vm.name} has no mapped-ram; save without it",
            reason="CAPABILITY_MISSING",
            capability=MAPPED_RAM,
        )
    blocked = (*(await qemu.query_migrate()).blocked_reasons, *vm.definition.blockers)
    if blocked:
        raise WrongState(f"VM {vm.name} cannot be saved: {'; '.join(blocked)}", reason="VM_NOT_SAVABLE", vm=vm.name)


async def save(vms: Vms, vm: Vm, work: Work, order: SaveOrder, *, guest_ran: bool) -> None:
    """Save a guest and end its QEMU.

    Raises:
        FerryError, OSError: it failed or was cancelled; there is no file, and the caller lets the guest run on.
    """
    qemu = vms.qemu(vm)
    written = part.part_path(order.path, work.job.id)
    work.at_step("writing")
    with part.create(written) as file:
        await qemu.stop()
        async with OwnedTasks() as tasks:
            tasks.start(follow_size(file.fileno(), work, vm.get_running().definition.memory_kib << 10))
            await write_guest(qemu, work, file, written, is_mapped_ram=order.is_mapped_ram)
        work.at_step("checking")
        guest = SavedGuest(
            definition=vm.get_running().definition.to_record(),
            state_before="running" if guest_ran else "paused",
            qemu_version=str(await qemu.query_version()),
            format="mapped-ram" if order.is_mapped_ram else "stream",
        )
        await asyncio.to_thread(seal, file, guest, work.watcher())
    work.check_wanted()
    part.commit(written, order.path)
    await vms.end_saved(work.lock)


async def undo(qemu: Qemu, *, guest_ran: bool) -> None:
    """Let a guest whose save has come to nothing be as it was."""
    if guest_ran:
        await run_on(qemu)
    else:
        await stay_stopped(qemu)
    await release_fds(qemu)
