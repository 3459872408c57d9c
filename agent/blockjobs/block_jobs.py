"""The jobs on disks of one host: begun, found, steered, and gone on with by the next agent if need be.

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

from agent.blockjobs.begin import creation_id
from agent.blockjobs.block_job import BlockJob, BlockJobRecords, Kind, State, UnreadableJob, Wish, qemu_id
from agent.blockjobs.carrying import Carrier
from agent.blockjobs.disks import commands_of, get_chain, get_disk, see_disks
from agent.blockjobs.ending import end_without_qemu
from agent.blockjobs.losses import losses_of
from agent.blockjobs.orders import Ground, plan_commit, plan_copy, plan_pull, plan_snapshot
from agent.blockjobs.sweep import sweep
from agent.blockjobs.work import Work
from agent.qemu.block_commands import BlockCommands
from agent.qemu.errors import QemuRefused
from agent.vm.image_activation import ensure_own_images
from agent.vm.jobs import DiskLock
from common.errors import NotFound, WrongState
from common.storage import find_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from agent.blockjobs.block_job import BlockJobRecord
    from agent.blockjobs.disks import SeenDisk
    from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
    from agent.store import Store
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm
    from common.tasks import OwnedTasks

KEPT_COUNT: Final = 200
_log = structlog.get_logger()


class BlockJobs:
    """The jobs on disks of one agent, with the last `KEPT_COUNT` that are over."""

    def __init__(self, vms: Vms, store: Store, tasks: OwnedTasks, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._vms = vms
        self._records = BlockJobRecords(store.block_jobs_dir)
        self._tasks = tasks
        self._wall_clock = wall_clock
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._unreadable: list[UnreadableJob] = []
        self._carrier = Carrier(vms, self._forget_oldest, wall_clock)

    def resume(self) -> None:
        """Take the disks again that jobs of an earlier agent hold, before anything is served; go on with those jobs."""
        for record in self._records.load():
            vm = self._vms.find(record.vm_uuid)
            if vm is None and self._vms.find_unreadable(str(record.vm_uuid)) is not None:
                continue  # its QEMU may be at work on it
            if vm is None:
                end_without_qemu(None, record)
                self._records.remove(record.id)
                _log.warning("block job of a vm that is gone", vm=record.vm_name, disk=record.disk, job=record.id)
                continue
            work = self._add(Work(record, vm, _lock(record), self._records))
            self._vms.jobs.keep_disk(work.lock)
            self._tasks.start(self._carrier.carry_on(work))
        for unread in self._records.unreadable():
            self._unreadable.append(unread)
            if unread.vm_uuid is not None and unread.disk:
                why = f"its record {unread.path} cannot be read; ferry doctor says what to do"
                self._vms.jobs.keep_disk(DiskLock(unread.vm_uuid, unread.disk, "block job", unread.id, why))
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
            self._carrier.decide(work, takes_new=True)
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
            self._carrier.decide(work, takes_new=False)
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
            await ensure_own_images(self._vms.qemu(vm), vm.name)
            chain = await get_chain(vm, commands, disk)
            ground = Ground(vm, self._vms.all(), disk, chain, job_id, self._wall_clock())
            record = await asyncio.to_thread(plan, ground)
            record = replace(record, losses=losses_of(record, chain, await commands.query_bitmaps()))
            work = Work(record, vm, lock, self._records)
            work.note(work.record)
        except OSError as error:
            self._vms.jobs.release_disk(lock)
            failure = find_failure(error)
            reason = "FILE_FAILED" if failure is None else failure.reason
            raise WrongState(f"the {kind.value} cannot be begun: {error}", reason=reason) from error
        except BaseException:
            self._vms.jobs.release_disk(lock)
            raise
        self._add(work)
        self._tasks.start(self._carrier.carry_out(work, disk, chain))
        await work.begun.wait()  # in a task of its own, so that a caller who leaves does not leave it half begun
        if work.failure is not None:
            raise work.failure
        return work.job

    async def _sweep(self, vm: Vm) -> None:
        monitor = await vm.wait_attached()
        if monitor is not None:
            await sweep(vm.name, BlockCommands(monitor), self._own_names)

    def _own_names(self) -> frozenset[str]:
        records = [work.record for work in self._works.values() if not work.job.is_over]
        unread = (qemu_id(one.id) for one in self._unreadable)
        return frozenset((*(name for record in records for name in (*record.nodes, creation_id(record))), *_names_of(unread)))

    async def _wish(self, work: Work, wish: Wish, tell: Callable[[BlockCommands], Awaitable[None]]) -> None:
        before = work.record.wish
        work.note(replace(work.record, wish=wish))
        try:
            await tell(self._commands(work))
        except QemuRefused:
            work.note(replace(work.record, wish=before))
            raise

    def _commands(self, work: Work) -> BlockCommands:
        return commands_of(self._vms, work.vm)

    def _find_active(self, vm_uuid: UUID, target: str) -> Work | None:
        works = (work for work in self._works.values() if (work.record.vm_uuid, work.record.disk) == (vm_uuid, target))
        return next((work for work in works if not work.job.is_over), None)

    def _add(self, work: Work) -> Work:
        self._works[work.record.id] = work
        return work

    def _forget_oldest(self) -> None:
        while len(self._works) > KEPT_COUNT and next(iter(self._works.values())).job.is_over:
            self._works.popitem(last=False)

    @staticmethod
    def _check_active(work: Work) -> None:
        if work.job.is_over:
            raise WrongState(f"{work.record.named()} is over: {work.job.state.value}", reason="BLOCK_JOB_OVER")


def _lock(record: BlockJobRecord) -> DiskLock:
    return DiskLock(record.vm_uuid, record.disk, record.kind.value, record.id)


def _names_of(jobs: Iterable[str]) -> Iterator[str]:
    """List what jobs have in QEMU, by their ids there."""
    for name in jobs:
        yield from (name, f"{name}-f", f"{name}-c")
