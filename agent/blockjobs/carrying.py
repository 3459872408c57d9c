"""One job on a disk from its beginning to its end: QEMU hears of it, it is followed, nothing of it is left, its end is told."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry import trace

from agent.blockjobs.begin import begin
from agent.blockjobs.block_job import Kind, State
from agent.blockjobs.disks import commands_of
from agent.blockjobs.ending import Ended, decide, end_in_qemu, end_without_qemu
from agent.blockjobs.following import follow_job, state_of
from agent.qemu.block_commands import BlockCommands
from agent.qemu.errors import QemuGone, QemuRefused, QemuSilent
from agent.vm.events import DiskJob, Reason
from common.errors import Bug, FerryError, WrongState
from common.storage import StorageFailed, find_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.blockjobs.block_job import BlockJobRecord
    from agent.blockjobs.chain import Chain
    from agent.blockjobs.job import Job
    from agent.blockjobs.work import Work
    from agent.vm.definition import Disk
    from agent.vm.lifecycle import Vms

AGAIN_S: Final = 1.0
ATTEMPT_COUNT: Final = 30
_REASONS: Final = {State.COMPLETED: Reason.COMPLETED, State.CANCELLED: Reason.CANCELLED}
_log = structlog.get_logger()
_tracer = trace.get_tracer("agent.blockjobs")


class Carrier:
    """Carries jobs out; `on_end` is called after each that is over, or left undecided."""

    def __init__(self, vms: Vms, on_end: Callable[[], None], wall_clock: Callable[[], float]) -> None:
        self._vms = vms
        self._on_end = on_end
        self._wall_clock = wall_clock

    async def carry_out(self, work: Work, disk: Disk, chain: Chain) -> None:
        """Begin a job that is on record, and follow it to its end."""
        record = work.record
        _log.info("block job begins", vm=record.vm_name, disk=record.disk, kind=record.kind.value, job=record.id, file=record.file)
        try:
            commands = commands_of(self._vms, work.vm)
            with self._vms.qemu(work.vm).monitor.subscribe() as notices:
                about = {"vm": record.vm_name, "disk": record.disk}
                with _tracer.start_as_current_span(f"block.{record.kind.value}", attributes=about):
                    await begin(work, commands, disk, chain)
                if record.kind is Kind.SNAPSHOT:
                    work.note(replace(work.record, outcome=State.COMPLETED.value))
                    await self._end(work)
                    work.begun.set()
                    return
                work.begun.set()
                await self._note_end(work, await follow_job(work, commands, notices, lambda: self._tell_ready(work)))
        except asyncio.CancelledError:
            raise
        except QemuGone as error:
            await self._fail(work, error)
        except Exception as error:  # noqa: BLE001 -- the driver: whatever it is, nothing of the job may be left
            await self._fail(work, error)

    async def carry_on(self, work: Work) -> None:
        """Go on with the job of an earlier agent."""
        work.begun.set()
        try:
            monitor = await work.vm.wait_attached()
            if monitor is None:
                await self._end(work)
                return
            with monitor.subscribe() as notices:
                if not work.record.outcome and work.record.kind is not Kind.SNAPSHOT:
                    job = await follow_job(work, BlockCommands(monitor), notices, lambda: self._tell_ready(work))
                    await self._note_end(work, job)
                    return
            await self._end(work)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 -- as in `carry_out`
            await self._fail(work, error)

    def decide(self, work: Work, *, takes_new: bool) -> None:
        """End a job that was left undecided: its disk has the new image, or the old one."""
        self._finish(work, decide(work.vm, work.record, takes_new=takes_new), None, is_told=True, is_forgotten=True)

    async def _note_end(self, work: Work, job: Job) -> None:
        """Put on record what QEMU says, before it is dismissed and says it no more."""
        record = replace(work.record, outcome=state_of(job), error=job.error)
        try:
            work.note(record)
        except StorageFailed as error:  # it is known as long as we are here
            _log.warning("block job not noted", vm=record.vm_name, job=record.id, error=error.text)
            work.become(replace(work.job, record=record))
        await self._end(work)

    async def _fail(self, work: Work, error: Exception) -> None:
        is_beginning = not work.begun.is_set()
        failure = self._describe(work, error)
        if not isinstance(error, QemuGone) and is_beginning:
            work.become(replace(work.job, record=replace(work.record, outcome=State.FAILED.value, error=failure.text)))
        work.failure = failure if is_beginning else None
        await self._end(work, failure=failure, is_told=not is_beginning)
        work.begun.set()

    async def _end(self, work: Work, *, failure: FerryError | None = None, is_told: bool = True) -> None:
        """Leave nothing of a job, and tell how it ended."""
        ended, is_forgotten = await self._try_to_end(work)
        self._finish(work, ended, failure, is_told=is_told, is_forgotten=is_forgotten)

    async def _try_to_end(self, work: Work) -> tuple[Ended, bool]:
        """End a job; say what became of it, and whether nothing of it is left. While QEMU says nothing it is tried again.

        Where definitions cannot be written that follow the disk it is tried until they can: a start would take the old image.
        """
        attempts = itertools.count(1)
        while True:
            try:
                return await self._end_once(work), True
            except StorageFailed as error:
                _log.warning("block job not ended yet", vm=work.record.vm_name, job=work.record.id, error=error.text)
                work.become(replace(work.job, error=error.text, reason=error.reason))
                await asyncio.sleep(AGAIN_S)
            except (QemuSilent, QemuRefused, OSError) as error:
                _log.warning("block job not ended yet", vm=work.record.vm_name, job=work.record.id, error=str(error))
                if next(attempts) == ATTEMPT_COUNT or not isinstance(error, QemuSilent):
                    said = f"its rest could not be removed: {error}; ferry doctor tells what is left"
                    return Ended(State.FAILED, work.job.path, said), False
                await asyncio.sleep(AGAIN_S)
            except (FerryError, TimeoutError) as error:
                return Ended(State.FAILED, work.job.path, f"and then: {error}"), False

    async def _end_once(self, work: Work) -> Ended:
        if await work.vm.wait_attached() is None:
            return end_without_qemu(work.vm, work.record)
        try:
            return await end_in_qemu(work.vm, work.record, commands_of(self._vms, work.vm))
        except QemuGone:
            return end_without_qemu(work.vm, work.record)
        except WrongState:
            if work.vm.keeper is None or work.vm.keeper.ended.is_set():
                return end_without_qemu(work.vm, work.record)
            raise

    def _finish(self, work: Work, ended: Ended, failure: FerryError | None, *, is_told: bool, is_forgotten: bool) -> None:
        record = work.record
        if ended.state is State.COMPLETED and work.vm.running is not None:
            self._vms.older_disks.forget(work.vm.running.definition)
        if ended.state is State.UNDECIDED:
            self._vms.jobs.keep_disk(replace(work.lock, why=ended.after))
        else:
            if is_forgotten:
                _forget(work)
            self._vms.jobs.release_disk(work.lock)
        text, reason = _words(record, ended, failure)
        is_final = ended.state is not State.UNDECIDED
        work.become(
            replace(
                work.job,
                path=ended.path,
                state=ended.state,
                status="",
                error=text,
                reason=reason,
                ended_at_s=self._wall_clock() if is_final else None,
            )
        )
        said = ended.after if ended.state is State.CANCELLED else text or ended.after
        _log.info("block job ended", vm=record.vm_name, disk=record.disk, job=record.id, state=ended.state.value, text=said)
        if is_told:
            self._tell(work, _REASONS.get(ended.state, Reason.FAILED), said)
        self._on_end()

    def _tell_ready(self, work: Work) -> None:
        self._tell(work, Reason.READY, "")

    def _tell(self, work: Work, reason: Reason, detail: str) -> None:
        record = work.record
        job = DiskJob(record.id, work.job.path, record.disk, record.kind.value)
        named = f"{record.kind.value} of {record.disk}, {work.job.path}{f': {detail}' if detail else ''}"
        self._vms.events.emit_disk_job(record.vm_uuid, record.vm_name, reason, job, named)

    def _describe(self, work: Work, error: Exception) -> FerryError:
        match error:
            case QemuGone():
                words = self._vms.last_words(work.vm)
                return QemuGone(f"{work.record.named()}: QEMU has ended{f': {words}' if words else ''}", vm=work.record.vm_name)
            case FerryError():
                return error
            case OSError():
                failure = find_failure(error)
                reason = "FILE_FAILED" if failure is None else failure.reason
                return WrongState(f"{work.record.file or work.record.paths[0]}: {error.strerror or error}", reason=reason)
        _log.error("bug", vm=work.record.vm_name, exc_info=error)
        return Bug(f"a mistake of Ferry's own: {type(error).__name__}: {error}")


def _forget(work: Work) -> None:
    """Take a job off the record; what stays is ended again by the next agent, which finds nothing to do."""
    try:
        work.forget()
    except StorageFailed as error:
        _log.warning("block job not forgotten", vm=work.record.vm_name, job=work.record.id, error=error.text)


def _words(record: BlockJobRecord, ended: Ended, failure: FerryError | None) -> tuple[str, str]:
    """Say why a job has not done what it was to do, and what became of the disk; empty for one that has."""
    after = f"; {ended.after}" if ended.after else ""
    match ended.state:
        case State.COMPLETED:
            return "", ""
        case State.CANCELLED:
            return f"{record.named()} was aborted{after}", "CANCELLED"
        case State.UNDECIDED:
            return f"{record.named()}: {ended.after}", "DISK_UNDECIDED"
        case _:
            why = record.error or (failure.text if failure is not None else "QEMU has no such job any more")
            reason = failure.reason if failure is not None else "BLOCK_JOB_FAILED"
            return f"{record.named()} failed: {why}{after}", reason
