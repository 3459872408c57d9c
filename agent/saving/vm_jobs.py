"""The saves, restores and dumps of one host: begun, followed, steered, and ended when the agent that began them is gone.

A job holds its VM's lock. It is a task of the agent: if the agent ends, so does the job, and the next agent undoes its half.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import structlog

from agent.qemu.endings import of_exit
from agent.qemu.errors import QemuGone
from agent.saving import part
from agent.saving.dump import DEFAULT_FORMAT, check_format, dump
from agent.saving.job import Kind, State, VmJob
from agent.saving.record import JobRecord, JobRecords
from agent.saving.recovery import recover
from agent.saving.restore import Saved, look, restore
from agent.saving.save import SaveOrder, check_can_save, find_guest_runs, save, undo
from agent.saving.transfer import MAPPED_RAM, NO_BOUND_BYTES_PER_SECOND
from agent.saving.work import Cancelled, Work
from agent.vm.image_activation import ensure_own_images
from agent.vm.jobs import Job
from common.errors import Expired, FerryError, NotFound, WrongState
from common.storage import StorageFailed, find_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agent.store import Store
    from agent.vm.definition import Definition
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm
    from common.tasks import OwnedTasks

KEPT_COUNT: Final = 200
END_TIMEOUT_S: Final = 2.0
LOCKS: Final = {Kind.SAVE: Job.SAVE, Kind.RESTORE: Job.RESTORE, Kind.DUMP: Job.DUMP}
_log = structlog.get_logger()


class VmJobs:
    """The jobs of one agent, the last `KEPT_COUNT` of them."""

    def __init__(self, vms: Vms, store: Store, tasks: OwnedTasks, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._vms = vms
        self._records = JobRecords(store.jobs_dir)
        self._tasks = tasks
        self._wall_clock = wall_clock
        self._works: OrderedDict[str, Work] = OrderedDict()
        vms.start_saved = self._start_saved

    def resume(self) -> None:
        """Take the VMs again that jobs of an earlier agent held, before anything is served; end those jobs in the background."""
        for record in self._records.load():
            vm = self._vms.find(record.vm_uuid)
            work = None
            if vm is None and self._vms.find_unreadable(str(record.vm_uuid)) is not None:
                continue  # its QEMU may be at work on it
            if vm is not None:
                job = VmJob(record.id, record.kind, vm.uuid, vm.name, Path(record.path), record.started_at_s)
                work = self._add(Work(job, self._vms.lock(vm, LOCKS[record.kind], record.id)))
            self._tasks.start(recover(self._vms, vm, work, record, self._records))

    async def save(self, vm: Vm, path: str, *, bandwidth_bytes_per_second: int = 0, is_mapped_ram: bool = False) -> VmJob:
        """Begin to save a guest; an empty path keeps it with its VM.

        Raises:
            FerryError: it cannot be saved, or not there; nothing was changed.
        """
        if not path and not vm.is_persistent:
            raise WrongState(
                f"VM {vm.name} is transient: nothing of it stays to keep a saved guest with; name a file",
                reason="VM_TRANSIENT",
                vm=vm.name,
            )
        order = SaveOrder(
            self._vms.premises.check_place(path) if path else vm.directory.saved_path, bandwidth_bytes_per_second, is_mapped_ram
        )
        part.check_free(order.path)
        work = self._begin(Kind.SAVE, vm, order.path)
        try:
            await check_can_save(self._vms, vm, is_mapped_ram=is_mapped_ram)
            guest_ran = await find_guest_runs(self._vms.qemu(vm), vm, "saved")
            await ensure_own_images(self._vms.qemu(vm), vm.name)
            work.bound(bandwidth_bytes_per_second)
        except BaseException:
            work.lock.release()
            raise

        async def undo_save() -> str:
            await undo(self._vms.qemu(vm), guest_ran=guest_ran)
            return "the guest runs on" if guest_ran else "the guest is paused as it was"

        return self._start(work, guest_ran, save(self._vms, vm, work, order, guest_ran=guest_ran), undo_save)

    def inspect(self, path: str) -> Definition:
        """Read what a file says of its guest; the contents are not looked at.

        Raises:
            FerryError: it is no saved guest, or lies where files may not be read from.
        """
        return look(self._vms.premises.check_place(path)).definition

    async def restore(self, path: str, *, paused: bool = False, force: bool = False) -> VmJob:
        """Begin to bring the guest of a file back; where another host has newer copies of its disks, with `force` only.

        Raises:
            FerryError: the header of the file or this host forbid it; nothing was changed.
        """
        saved = look(self._vms.premises.check_place(path))
        vm = self._vms.find(saved.definition.uuid)
        if vm is not None and vm.has_saved_guest:
            raise WrongState(
                f"VM {vm.name} has a saved guest of its own; start it or discard that first", reason="SAVED_GUEST_KEPT", vm=vm.name
            )
        return await self._restore(saved, paused=paused, force=force)

    async def dump(self, vm: Vm, path: str, file_format: str) -> VmJob:
        """Begin to dump a guest's memory.

        Raises:
            FerryError: it cannot be dumped, or not there, or not in this format; nothing was changed.
        """
        place = self._vms.premises.check_place(path)
        part.check_free(place)
        work = self._begin(Kind.DUMP, vm, place)
        try:
            qemu = self._vms.qemu(vm)
            await check_format(qemu, file_format or DEFAULT_FORMAT)
            guest_ran = await find_guest_runs(qemu, vm, "dumped")
        except BaseException:
            work.lock.release()
            raise

        async def undo_dump() -> str:
            return "the guest runs on" if guest_ran else "the guest is paused as it was"

        return self._start(work, guest_ran, dump(qemu, work, place, file_format or DEFAULT_FORMAT), undo_dump)

    def get(self, name: str) -> Work:
        """Get a job by its id, or the latest one of a VM by name or UUID.

        Raises:
            NotFound: there was none since this agent started.
        """
        if name in self._works:
            return self._works[name]
        for work in reversed(self._works.values()):
            if name in (work.job.vm_name, str(work.job.vm_uuid)):
                return work
        raise NotFound(f"VM {name[:80]} has had no save, restore or dump since this agent started", reason="JOB_NOT_FOUND", vm=name)

    def cancel(self, work: Work) -> None:
        """Ask a job to end; what comes of it is told by the job.

        Raises:
            WrongState: it is over, or a dump, which QEMU carries through.
        """
        self._check_active(work)
        if work.job.kind is Kind.DUMP:
            raise WrongState(
                f"the dump of VM {work.job.vm_name} cannot be cancelled: QEMU carries a dump through; the guest goes on after it",
                reason="DUMP_NOT_CANCELLABLE",
            )
        work.cancel_wished.set()

    async def set_bandwidth(self, work: Work, bytes_per_second: int) -> None:
        """Change the bound of a save; 0 is none.

        Raises:
            WrongState: it is over, or no save.
        """
        self._check_active(work)
        if work.job.kind is not Kind.SAVE:
            raise WrongState(f"a {work.job.kind.value} has no bandwidth to set", reason="JOB_UNBOUND")
        bound = bytes_per_second or NO_BOUND_BYTES_PER_SECOND
        await self._vms.qemu(self._vms.get(str(work.job.vm_uuid))).set_parameters({"max-bandwidth": bound})
        work.bound(bytes_per_second)

    def discard_saved(self, vm: Vm) -> None:
        """Remove the saved guest that is kept with a VM.

        Raises:
            WrongState: there is none.
        """
        with self._vms.lock(vm, Job.SET, ""):
            if not vm.has_saved_guest:
                raise WrongState(f"VM {vm.name} has no saved guest", reason="NO_SAVED_GUEST", vm=vm.name)
            part.discard(vm.directory.saved_path)
            _log.info("saved guest discarded", vm=vm.name)

    async def _restore(self, saved: Saved, *, paused: bool, force: bool) -> VmJob:
        if not force:
            self._vms.older_disks.check(saved.definition)
        if saved.is_mapped_ram:
            await self._vms.premises.check_capability(saved.definition, MAPPED_RAM)
        job_id = str(uuid4())
        vm, lock = self._vms.reserve(saved.definition, job_id)
        work = self._add(Work(VmJob(job_id, Kind.RESTORE, vm.uuid, vm.name, saved.path, self._wall_clock()), lock))
        guest_runs = not paused and saved.header.guest.state_before == "running"

        loaded = asyncio.Event()

        def note_loaded() -> None:
            loaded.set()
            self._records.save(replace(_record(work, guest_runs), is_loaded=True))

        def use_up() -> None:
            if saved.path == vm.directory.saved_path:
                part.discard(saved.path)

        async def bring_back() -> None:
            await restore(self._vms, work, saved, on_loaded=note_loaded, guest_runs=guest_runs)
            use_up()

        async def undo_restore() -> str:
            await self._vms.end_restoring(work.lock)
            if not loaded.is_set():
                return "the file is as it was"
            use_up()  # the guest may have run since and changed its disks
            return (
                f"its guest is here all the same: ferry vm show {vm.name} tells whether it runs, ferry vm resume {vm.name} lets it "
                f"run, ferry vm stop --force {vm.name} ends it"
            )

        return self._start(work, guest_runs, bring_back(), undo_restore)

    async def _start_saved(self, vm: Vm, paused: bool, force: bool) -> None:  # noqa: FBT001 -- the shape of `Vms.start_saved`
        if vm.running is not None:
            raise WrongState(f"VM {vm.name} is running already", reason="VM_RUNNING", vm=vm.name)
        job = await self.get((await self._restore(look(vm.directory.saved_path), paused=paused, force=force)).id).wait_over()
        if job.state is not State.COMPLETED:
            raise WrongState(job.error, reason=job.reason)

    def _begin(self, kind: Kind, vm: Vm, path: Path) -> Work:
        job_id = str(uuid4())
        vm.get_running()
        lock = self._vms.lock(vm, LOCKS[kind], job_id)
        return Work(VmJob(job_id, kind, vm.uuid, vm.name, path, self._wall_clock()), lock)

    def _start(self, work: Work, guest_runs: bool, doing: Coroutine[None, None, None], undo: Callable[[], Awaitable[str]]) -> VmJob:  # noqa: FBT001
        try:
            self._records.save(_record(work, guest_runs))
        except BaseException:
            doing.close()
            work.lock.release()
            raise
        self._add(work)
        self._tasks.start(self._carry_out(work, doing, undo))
        return work.job

    async def _carry_out(self, work: Work, doing: Awaitable[None], undo: Callable[[], Awaitable[str]]) -> None:
        job = work.job
        _log.info("vm job began", vm=job.vm_name, kind=job.kind.value, job=job.id, path=str(job.path))
        try:
            await doing
        except asyncio.CancelledError:
            work.cancel_wished.set()  # also for a thread that reads a file
            raise
        except Exception as error:  # noqa: BLE001 -- the driver: whatever it is, the guest must not stay stopped
            await self._fail(work, error, undo)
        else:
            self._forget(job)
            work.end(State.COMPLETED, self._wall_clock())
            _log.info("vm job completed", vm=job.vm_name, kind=job.kind.value, job=job.id)

    async def _fail(self, work: Work, error: Exception, undo: Callable[[], Awaitable[str]]) -> None:
        job = work.job
        if isinstance(error, QemuGone):
            await self._wait_ended(job)
        text, reason = self._describe(work, error)
        try:
            if job.kind is not Kind.RESTORE:
                part.discard(part.part_path(job.path, job.id))
            is_ended = isinstance(error, QemuGone) and job.kind is not Kind.RESTORE
            after = "" if is_ended else await undo()
            text = f"{text}; {after}" if after else text
            self._forget(job)
        except QemuGone:
            self._forget(job)
        except (FerryError, OSError, TimeoutError) as more:
            text = f"{text}; and then: {more}"
        state = State.CANCELLED if isinstance(error, Cancelled) else State.FAILED
        _log.warning("vm job not done", vm=job.vm_name, kind=job.kind.value, job=job.id, error=text)
        work.end(state, self._wall_clock(), error=text, reason=reason)

    def _forget(self, job: VmJob) -> None:
        """Take a job off the record; what stays is ended again by the next agent, which finds nothing to do."""
        try:
            self._records.remove(job.id)
        except StorageFailed as failure:
            _log.warning("job not forgotten", job=job.id, error=failure.text)

    async def _wait_ended(self, job: VmJob) -> None:
        """Let the end of QEMU be noted first: it has the last words."""
        vm = self._vms.find(job.vm_uuid)
        if vm is not None and vm.keeper is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await vm.keeper.ended.wait()

    def _describe(self, work: Work, error: Exception) -> tuple[str, str]:
        match error:
            case QemuGone():
                vm = self._vms.find(work.job.vm_uuid)
                words = "" if vm is None else self._vms.last_words(vm)
                ending = of_exit(error.facts.get("shutdown", ""), words, during=work.job.kind.value)
                return f"VM {work.job.vm_name}: {ending.text}", ending.reason
            case FerryError():
                return error.text, error.reason
            case TimeoutError():
                return f"QEMU of VM {work.job.vm_name} did not settle in time", Expired.default_reason
            case OSError():
                failure = find_failure(error)
                return f"{work.job.path}: {error.strerror or error}", "FILE_FAILED" if failure is None else failure.reason
        _log.error("bug", vm=work.job.vm_name, exc_info=error)
        return f"a mistake of Ferry's own: {type(error).__name__}", "BUG"

    def _add(self, work: Work) -> Work:
        self._works[work.job.id] = work
        while len(self._works) > KEPT_COUNT and next(iter(self._works.values())).is_over:
            self._works.popitem(last=False)
        return work

    @staticmethod
    def _check_active(work: Work) -> None:
        if work.is_over:
            job = work.job
            raise WrongState(f"the {job.kind.value} of VM {job.vm_name} is over: {job.state.value}", reason="JOB_OVER")


def _record(work: Work, guest_runs: bool) -> JobRecord:  # noqa: FBT001 -- a fact, not a switch
    job = work.job
    written = "" if job.kind is Kind.RESTORE else str(part.part_path(job.path, job.id))
    return JobRecord(job.id, job.kind, job.vm_uuid, job.vm_name, str(job.path), written, guest_runs, job.started_at_s)
