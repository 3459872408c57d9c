"""Ending what an agent left half done when it was killed in the middle of a job.

A save or dump whose file is in its place is carried through. Any other one is undone: the partial file goes and the guest is as it
was before. A restore that had its guest complete is carried through, any other one is ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.qemu.errors import QemuGone
from agent.qemu.status import MigrationStatus
from agent.saving import part
from agent.saving.dump import wait_dumped
from agent.saving.job import Kind, State
from agent.saving.save import undo
from agent.saving.transfer import run_on, wait_final
from agent.vm.events import Happening, Reason
from common.errors import FerryError
from common.storage import StorageFailed

if TYPE_CHECKING:
    from agent.qemu.commands import Qemu
    from agent.saving.record import JobRecord, JobRecords
    from agent.saving.work import Work
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

REASON = "AGENT_RESTARTED"
_log = structlog.get_logger()


async def recover(vms: Vms, vm: Vm | None, work: Work | None, record: JobRecord, records: JobRecords) -> None:
    """End one job and tell it as an event; must not raise."""
    said = f"the agent was started anew during the {record.kind.value} to or from {record.path}"
    state = State.FAILED
    try:
        if vm is None or work is None:
            after = _without_vm(record)
        elif await vm.wait_attached() is None:
            after = _without_qemu(vm, record)
        else:
            after, state = await _with_qemu(vms, vm, work, record)
        records.remove(record.id)
    except QemuGone:
        part.discard(Path(record.part_path)) if record.part_path else None
        _forget(records, record)
        after = "then its QEMU ended"
    except (FerryError, OSError, TimeoutError) as error:
        after = f"this could not be undone: {error}"
    text = f"{said}; {after}"
    _log.warning("vm job of an earlier agent ended", vm=record.vm_name, kind=record.kind.value, job=record.id, text=text)
    vms.events.emit(record.vm_uuid, record.vm_name, Happening.JOB, Reason.INTERRUPTED, text)
    if work is not None:
        now_s = vms.events.wall_clock()
        work.end(state, now_s, error="" if state is State.COMPLETED else text, reason="" if state is State.COMPLETED else REASON)


def _forget(records: JobRecords, record: JobRecord) -> None:
    try:
        records.remove(record.id)
    except StorageFailed as failure:  # the next agent finds nothing to do
        _log.warning("job not forgotten", job=record.id, error=failure.text)


def _is_complete(record: JobRecord) -> bool:
    """Say whether a save or dump has its file: nothing was in that place when it began."""
    return Path(record.path).exists() and not Path(record.part_path).exists()


def _without_vm(record: JobRecord) -> str:
    if record.kind is Kind.RESTORE:
        return "its QEMU is gone, the file is as it was"
    if _is_complete(record):
        return "the file is complete"
    part.discard(Path(record.part_path))
    return "its QEMU is gone, the partial file was removed"


def _without_qemu(vm: Vm, record: JobRecord) -> str:
    if record.kind is Kind.RESTORE and record.is_loaded and Path(record.path) == vm.directory.saved_path:
        part.discard(vm.directory.saved_path)  # the guest may have run since and changed its disks
        return "the guest may have run and is gone, the saved guest was removed"
    return _without_vm(record)


async def _with_qemu(vms: Vms, vm: Vm, work: Work, record: JobRecord) -> tuple[str, State]:
    qemu = vms.qemu(vm)
    if record.kind is Kind.RESTORE:
        return await _end_restore(vms, vm, work, record)
    if _is_complete(record):
        if record.kind is Kind.SAVE:
            await vms.end_saved(work.lock)
        return "the file is complete", State.COMPLETED
    part.discard(Path(record.part_path))
    await (_undo_save if record.kind is Kind.SAVE else _undo_dump)(qemu, work, record)
    return f"the partial file was removed, the guest {'runs on' if record.guest_runs else 'is paused as it was'}", State.FAILED


async def _undo_save(qemu: Qemu, work: Work, record: JobRecord) -> None:
    report = await qemu.query_migrate()
    if report.status is not MigrationStatus.NONE and not report.status.is_final:
        work.cancel_wished.set()
        await wait_final(qemu, work)
    await undo(qemu, guest_ran=record.guest_runs)


async def _undo_dump(qemu: Qemu, work: Work, record: JobRecord) -> None:
    await wait_dumped(qemu, work)
    if record.guest_runs:
        await run_on(qemu)


async def _end_restore(vms: Vms, vm: Vm, work: Work, record: JobRecord) -> tuple[str, State]:
    if not record.is_loaded:
        await vms.end_restoring(work.lock)
        return "the guest was not complete and its QEMU was ended, the file is as it was", State.FAILED
    vms.keep_here(work.lock)
    if record.guest_runs:
        await run_on(vms.qemu(vm))
    if Path(record.path) == vm.directory.saved_path:
        part.discard(vm.directory.saved_path)
    return "the guest was complete and is here", State.COMPLETED
