"""The jobs on disks of one host: begun, followed, steered, and ended, by the next agent if need be.

A job is QEMU's: it goes on without the agent. What the agent adds is the file and the nodes for it, and that the definitions follow
the disk; so each job is on record before QEMU hears of it, and until nothing of it is left to do.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import structlog
from opentelemetry import trace

from agent.blockjobs.begin import begin, creation_id
from agent.blockjobs.block_job import BlockJob, BlockJobRecords, Kind, State, Wish
from agent.blockjobs.disks import commands_of, get_chain, get_disk, see_disks
from agent.blockjobs.ending import Ended, decide, end_in_qemu, end_without_qemu
from agent.blockjobs.following import follow_job, state_of
from agent.blockjobs.orders import Ground, plan_commit, plan_copy, plan_pull, plan_snapshot
from agent.blockjobs.sweep import sweep
from agent.blockjobs.work import Work
from agent.qemu.block_commands import BlockCommands
from agent.qemu.errors import QemuGone, QemuRefused, QemuSilent
from agent.vm.events import DiskJob, Reason
from agent.vm.jobs import DiskLock
from common.errors import Bug, FerryError, NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from agent.blockjobs.block_job import BlockJobRecord
    from agent.blockjobs.chain import Chain
    from agent.blockjobs.disks import SeenDisk
    from agent.blockjobs.job import Job
    from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
    from agent.store import Store
    from agent.vm.definition import Disk
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm
    from common.tasks import OwnedTasks

KEPT_COUNT: Final = 200
AGAIN_S: Final = 1.0
ATTEMPT_COUNT: Final = 30
_REASONS: Final = {State.COMPLETED: Reason.COMPLETED, State.CANCELLED: Reason.CANCELLED}
_log = structlog.get_logger()
_tracer = trace.get_tracer("agent.blockjobs")


class BlockJobs:
    """The jobs on disks of one agent, with the last `KEPT_COUNT` that are over."""

    def __init__(self, vms: Vms, store: Store, tasks: OwnedTasks, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._vms = vms
        self._records = BlockJobRecords(store.block_jobs_dir)
        self._tasks = tasks
        self._wall_clock = wall_clock
        self._works: OrderedDict[str, Work] = OrderedDict()

    def resume(self) -> None:
        """Take the disks again that jobs of an earlier agent hold, before anything is served; go on with those jobs."""
        for record in self._records.load():
            vm = self._vms.find(record.vm_uuid)
            if vm is None:
                end_without_qemu(None, record)
                self._records.remove(record.id)
                _log.warning("block job of a vm that is gone", vm=record.vm_name, disk=record.disk, job=record.id)
                continue
            work = self._add(Work(record, vm, _lock(record), self._records))
            self._vms.jobs.keep_disk(work.lock)
            self._tasks.start(self._carry_on(work))
        for vm in self._vms.all():
            if vm.running is not None:
                self._tasks.start(self._sweep(vm))

    # what users wish

    async def copy(self, vm: Vm, target: str, order: CopyOrder) -> BlockJob:
        """Begin to copy a disk.

        Raises:
            FerryError: it cannot be copied, or not there; nothing was changed.
        """
        return await self._begin(vm, target, Kind.COPY, lambda ground: plan_copy(ground, order))

    async def pull(self, vm: Vm, target: str, order: PullOrder) -> BlockJob:
        """Begin to pull what is below a disk's uppermost image into it.

        Raises:
            FerryError: there is nothing to pull, or no room; nothing was changed.
        """
        return await self._begin(vm, target, Kind.PULL, lambda ground: plan_pull(ground, order))

    async def commit(self, vm: Vm, target: str, order: CommitOrder) -> BlockJob:
        """Begin to write images down into one below them.

        Raises:
            FerryError: they are not in this order, or the base cannot be written to; nothing was changed.
        """
        return await self._begin(vm, target, Kind.COMMIT, lambda ground: plan_commit(ground, order))

    async def snapshot(self, vm: Vm, target: str, path: Path) -> BlockJob:
        """Put a new image on top of a disk; on return the guest writes to it.

        Raises:
            FerryError: it cannot be made; nothing was changed.
        """
        job = await self._begin(vm, target, Kind.SNAPSHOT, lambda ground: plan_snapshot(ground, path))
        ended = await self._works[job.id].wait_over()
        if ended.state is not State.COMPLETED:
            raise WrongState(ended.error, reason=ended.reason)
        return ended

    async def see(self, vm: Vm) -> tuple[SeenDisk, ...]:
        """Look at the disks of a running VM.

        Raises:
            WrongState: it does not run.
        """
        return await see_disks(vm, commands_of(self._vms, vm))

    def find(self, vm_uuid: UUID, target: str) -> BlockJob | None:
        """Find the job that is on a disk now."""
        work = self._find_active(vm_uuid, target)
        return None if work is None else work.job

    def all(self) -> list[BlockJob]:
        """List the jobs that are not over."""
        return [work.job for work in self._works.values() if not work.job.is_over]

    def get(self, name: str, target: str) -> Work:
        """Get a job by its id, or the one on a disk of a VM by name or UUID: that which runs, else the latest.

        Raises:
            NotFound: there was none since this agent started.
        """
        if name in self._works:
            return self._works[name]
        vm = self._vms.get(name)
        of_vm = [work for work in self._works.values() if work.record.vm_uuid == vm.uuid and target in ("", work.record.disk)]
        if of_vm:
            return next((work for work in reversed(of_vm) if not work.job.is_over), of_vm[-1])
        of_disk = f"disk {target} of VM {vm.name}" if target else f"VM {vm.name}"
        raise NotFound(f"{of_disk} has had no block job since this agent started", reason="BLOCK_JOB_NOT_FOUND", vm=vm.name)

    async def set_speed(self, work: Work, bytes_per_second: int) -> None:
        """Bound a job; 0 is without a bound.

        Raises:
            WrongState: it is over.
        """
        self._check_active(work)
        await self._commands(work).set_job_speed(work.record.qemu_id, bytes_per_second)
        work.note(replace(work.record, bandwidth_bytes_per_second=bytes_per_second))

    async def pivot(self, work: Work) -> None:
        """Let a disk go over to what a job has written, once that is ready; of one that was left undecided take the new image.

        Raises:
            WrongState: it is over, not ready, or has no pivot.
        """
        self._check_active(work)
        if work.job.state is State.UNDECIDED:
            self._decide(work, takes_new=True)
            return
        if not work.record.kind.pivots:
            raise WrongState(f"{work.record.named()} ends by itself: it has no pivot", reason="NO_PIVOT")
        if work.job.state is not State.READY:
            raise WrongState(
                f"{work.record.named()} is not ready: {work.job.processed_bytes} of {work.job.total_bytes} bytes are done",
                reason="BLOCK_JOB_NOT_READY",
                processed_bytes=work.job.processed_bytes,
                total_bytes=work.job.total_bytes,
            )
        await self._wish(work, Wish.PIVOT, lambda commands: commands.complete_job(work.record.qemu_id))

    async def abort(self, work: Work, *, keeps_copy: bool = False) -> None:
        """Ask a job to end without a pivot; what comes of it is told by the job.

        Args:
            work: the job; of one that was left undecided the old image is taken.
            keeps_copy: of a copy that is ready, keep the file, equal to the disk at that moment.

        Raises:
            WrongState: it is over, or nothing to keep is there yet.
        """
        self._check_active(work)
        if work.job.state is State.UNDECIDED:
            self._decide(work, takes_new=False)
            return
        if not keeps_copy:
            await self._wish(work, Wish.ABORT, lambda commands: commands.abort_job(work.record.qemu_id))
            return
        if work.record.kind is not Kind.COPY or work.job.state is not State.READY:
            text = f"{work.record.named()} is no copy that is ready: there is nothing to keep"
            raise WrongState(text, reason="BLOCK_JOB_NOT_READY")
        await self._wish(work, Wish.KEEP, lambda commands: commands.settle_job(work.record.qemu_id))

    # how

    async def _begin(self, vm: Vm, target: str, kind: Kind, plan: Callable[[Ground], BlockJobRecord]) -> BlockJob:
        disk = get_disk(vm, target)
        job_id = str(uuid4())
        lock = DiskLock(vm.uuid, target, kind.value, job_id)
        self._vms.jobs.take_disk(vm.name, lock)
        try:
            commands = commands_of(self._vms, vm)
            chain = await get_chain(vm, commands, disk)
            ground = Ground(vm, self._vms.all(), disk, chain, job_id, self._wall_clock())
            work = Work(await asyncio.to_thread(plan, ground), vm, lock, self._records)
            work.note(work.record)
        except OSError as error:
            self._vms.jobs.release_disk(lock)
            raise WrongState(f"the {kind.value} cannot be begun: {error}", reason="FILE_FAILED") from error
        except BaseException:
            self._vms.jobs.release_disk(lock)
            raise
        self._add(work)
        self._tasks.start(self._carry_out(work, disk, chain))
        await work.begun.wait()  # in a task of its own, so that a caller who leaves does not leave it half begun
        if work.failure is not None:
            raise work.failure
        return work.job

    async def _carry_out(self, work: Work, disk: Disk, chain: Chain) -> None:
        record = work.record
        _log.info("block job begins", vm=record.vm_name, disk=record.disk, kind=record.kind.value, job=record.id, file=record.file)
        try:
            commands = self._commands(work)
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

    async def _carry_on(self, work: Work) -> None:
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
        except Exception as error:  # noqa: BLE001 -- as in `_carry_out`
            await self._fail(work, error)

    async def _sweep(self, vm: Vm) -> None:
        monitor = await vm.wait_attached()
        if monitor is not None:
            await sweep(vm.name, BlockCommands(monitor), self._own_names)

    def _own_names(self) -> frozenset[str]:
        records = [work.record for work in self._works.values() if not work.job.is_over]
        return frozenset(name for record in records for name in (*record.nodes, creation_id(record)))

    async def _note_end(self, work: Work, job: Job) -> None:
        """Put on record what QEMU says, before it is dismissed and says it no more."""
        work.note(replace(work.record, outcome=state_of(job), error=job.error))
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
        """Leave nothing of a job, and tell how it ended. While QEMU says nothing it is tried again."""
        for attempt in range(ATTEMPT_COUNT):
            try:
                ended = await self._end_once(work)
                break
            except (QemuSilent, QemuRefused, OSError) as error:
                _log.warning("block job not ended yet", vm=work.record.vm_name, job=work.record.id, error=str(error))
                if attempt == ATTEMPT_COUNT - 1 or not isinstance(error, QemuSilent):
                    said = f"its rest could not be removed: {error}; ferry doctor tells what is left"
                    ended = Ended(State.FAILED, work.job.path, said)
                    self._finish(work, ended, failure, is_told=is_told, is_forgotten=False)
                    return
                await asyncio.sleep(AGAIN_S)
            except (FerryError, TimeoutError) as error:
                ended = Ended(State.FAILED, work.job.path, f"and then: {error}")
                self._finish(work, ended, failure, is_told=is_told, is_forgotten=False)
                return
        else:
            raise Bug("no attempt was made")
        self._finish(work, ended, failure, is_told=is_told, is_forgotten=True)

    async def _end_once(self, work: Work) -> Ended:
        if await work.vm.wait_attached() is None:
            return end_without_qemu(work.vm, work.record)
        try:
            return await end_in_qemu(work.vm, work.record, self._commands(work))
        except QemuGone:
            return end_without_qemu(work.vm, work.record)
        except WrongState:
            if work.vm.keeper is None or work.vm.keeper.ended.is_set():
                return end_without_qemu(work.vm, work.record)
            raise

    def _finish(self, work: Work, ended: Ended, failure: FerryError | None, *, is_told: bool, is_forgotten: bool) -> None:
        record = work.record
        if ended.state is State.UNDECIDED:
            self._vms.jobs.keep_disk(replace(work.lock, why=ended.after))
        else:
            if is_forgotten:
                work.forget()
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
        while len(self._works) > KEPT_COUNT and next(iter(self._works.values())).job.is_over:
            self._works.popitem(last=False)

    def _decide(self, work: Work, *, takes_new: bool) -> None:
        self._finish(work, decide(work.vm, work.record, takes_new=takes_new), None, is_told=True, is_forgotten=True)

    async def _wish(self, work: Work, wish: Wish, tell: Callable[[BlockCommands], Awaitable[None]]) -> None:
        before = work.record.wish
        work.note(replace(work.record, wish=wish))
        try:
            await tell(self._commands(work))
        except QemuRefused:
            work.note(replace(work.record, wish=before))
            raise

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
                return WrongState(f"{work.record.file or work.record.paths[0]}: {error.strerror or error}", reason="FILE_FAILED")
        _log.error("bug", vm=work.record.vm_name, exc_info=error)
        return Bug(f"a mistake of Ferry's own: {type(error).__name__}: {error}")

    def _commands(self, work: Work) -> BlockCommands:
        return commands_of(self._vms, work.vm)

    def _find_active(self, vm_uuid: UUID, target: str) -> Work | None:
        works = (work for work in self._works.values() if (work.record.vm_uuid, work.record.disk) == (vm_uuid, target))
        return next((work for work in works if not work.job.is_over), None)

    def _add(self, work: Work) -> Work:
        self._works[work.record.id] = work
        return work

    @staticmethod
    def _check_active(work: Work) -> None:
        if work.job.is_over:
            raise WrongState(f"{work.record.named()} is over: {work.job.state.value}", reason="BLOCK_JOB_OVER")


def _lock(record: BlockJobRecord) -> DiskLock:
    return DiskLock(record.vm_uuid, record.disk, record.kind.value, record.id)


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
