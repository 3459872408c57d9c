"""The VMs of one host: defined, started, stopped, moved in and out.

    (nothing) --define--> stopped --start--> running --stop--> stopped --undefine--> (nothing)
    (nothing) --start_incoming--> incoming --keep_here, persist--> running
    running --drop--> (nothing)               incoming --forget--> (nothing)
    (nothing) --create--> running, transient --stop--> (nothing)
    running --undefine--> running, transient --define--> running
    running --save--> stopped, or (nothing)   stopped, (nothing) --reserve, start_restoring, keep_here--> running
    (nothing) --adopt--> running --release--> (nothing)

Who changes a VM holds its job lock. Leaving `Vms` leaves every QEMU running; the next agent attaches to them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import structlog
from opentelemetry import trace

from agent.vm import process
from agent.vm.adoption.survey import survey
from agent.vm.cpu_shares import AskedShares, CpuShares, find_asked
from agent.vm.domain.parse import parse_domain
from agent.vm.engine import Engine, storage_may_fail
from agent.vm.events import Happening, Reason, VmEvents
from agent.vm.jobs import Job, JobLock, Jobs
from agent.vm.older_disks import OlderDisks
from agent.vm.premises import Premises
from agent.vm.registry import Registry
from agent.vm.replaced_images import check_images
from agent.vm.running import adopted
from agent.vm.stopping import power_off, quit_qemu
from agent.vm.unreadable import unreadable
from agent.vm.view import view_vm
from agent.vm.wishes import Tunables, Wishes
from common.errors import Bug, Expired, WrongState
from common.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from agent.qemu.commands import Qemu
    from agent.store import Store
    from agent.vm.adoption.plan import AdoptionPlan
    from agent.vm.definition import Definition
    from agent.vm.probes import Probes
    from agent.vm.running import Running
    from agent.vm.settings import VmSettings
    from agent.vm.stored import Stored
    from agent.vm.unreadable import UnreadableVm
    from agent.vm.vm import Vm, VmView

DEFAULT_STOP_TIMEOUT_S = 30.0
_KIB = 1024
_log = structlog.get_logger()
_tracer = trace.get_tracer("agent.vm")


class Vms:
    """Every VM of this host. Enter it with `async with` before use; entering attaches to what still runs."""

    def __init__(self, store: Store, settings: VmSettings, probes: Probes, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.events = VmEvents(wall_clock)
        self.cpu_shares = CpuShares(self.events, settings.cgroup_root)
        self.premises = Premises(settings, probes)
        self.older_disks = OlderDisks(store)
        self._start_timeout_s = settings.start_timeout_s
        self._registry = Registry(store)
        self._jobs = Jobs(self._settle)
        self._engine = Engine(
            self.events,
            self.cpu_shares,
            start_timeout_s=settings.start_timeout_s,
            find_job=self._find_job,
            on_end=lambda vm: self._settle(vm.uuid),
        )
        self._unclaimed: set[UUID] = set()
        self._stack = AsyncExitStack()
        # Brings the saved guest of a VM back; set by whoever can.
        self.start_saved: Callable[[Vm, bool, bool], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        """Read what is on record and attach to the QEMUs that run; those that died meanwhile are noted.

        An incoming VM is attached too: the migration that it belongs to takes its lock again and decides.
        """
        await self._stack.enter_async_context(self._engine)
        self.older_disks.sweep()
        for vm, running in self._registry.load():
            if running is not None:
                if running.migration_id is not None:
                    self._unclaimed.add(vm.uuid)
                self._engine.attach(vm, running)
        return self

    def forget_unclaimed(self) -> None:
        """Remove incoming VMs whose QEMU has ended and that no migration has taken again; once all of those are taken up."""
        unclaimed, self._unclaimed = self._unclaimed, set()
        for uuid in unclaimed:
            self._settle(uuid)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None) -> None:
        """Let go of every QEMU; they run on."""
        await self._stack.__aexit__(kind, error, trace_)

    def get(self, name_or_uuid: str) -> Vm:
        """Get a VM by name or UUID.

        Raises:
            NotFound: this host has none.
        """
        return self._registry.get(name_or_uuid)

    def find(self, uuid: UUID) -> Vm | None:
        """Find a VM by UUID."""
        return self._registry.find(uuid)

    def all(self) -> list[Vm]:
        """List the VMs by name."""
        return self._registry.all()

    def unreadable(self) -> list[UnreadableVm]:
        """List the VMs of which nothing can be read that could be served, by name."""
        return self._registry.unreadable()

    def find_unreadable(self, name_or_uuid: str) -> UnreadableVm | None:
        """Find a VM of which nothing can be read that could be served."""
        return self._registry.find_unreadable(name_or_uuid)

    async def view(self, vm: Vm) -> VmView:
        """Describe a VM; its state is asked of QEMU."""
        return await view_vm(vm, self._jobs.find(vm.uuid))

    async def views(self) -> list[VmView]:
        """Describe every VM, by name; QEMUs are asked at the same time."""
        async with asyncio.TaskGroup() as group:
            views = [group.create_task(self.view(vm)) for vm in self.all()]
        return [view.result() for view in views]

    def qemu(self, vm: Vm) -> Qemu:
        """Get the commands of a running VM's QEMU.

        Raises:
            WrongState: it does not run.
        """
        return vm.get_keeper().qemu

    def lock(self, vm: Vm, job: Job, holder_id: str) -> JobLock:
        """Take a VM's job lock; again by the same job and holder gives the same lock.

        Raises:
            Busy: another job holds the VM.
        """
        return self._jobs.take(vm.uuid, vm.name, job, holder_id)

    def lock_of(self, vm: Vm) -> JobLock | None:
        """Find the lock that holds a VM."""
        return self._jobs.find(vm.uuid)

    @property
    def jobs(self) -> Jobs:
        """Who holds which VM and which disks."""
        return self._jobs

    def last_words(self, vm: Vm) -> str:
        """Read the last message of a VM's QEMU, running or ended; empty when it said nothing."""
        return self._registry.last_words(vm)

    # What users do

    async def define(self, xml: bytes, origin: str, *, force: bool = False) -> Vm:
        """Store the definition in domain XML; of a VM with this name and UUID it takes the old one's place.

        A VM that runs keeps its running definition until it is started again.

        Raises:
            InvalidRequest: the XML is refused; the text says where.
            WrongState: name or UUID belong to another VM, or this host's QEMU cannot build the machine, or a disk would go over to
                another image than the one that it is on, and `force` is not given.
            Busy: a job holds the VM that is to be redefined.
        """
        definition = parse_domain(xml, origin)
        self.premises.check_paths(definition)
        existing = self._registry.find(definition.uuid)
        if force and self._registry.find_unreadable(str(definition.uuid)) is not None:
            existing = await self._serve_again(definition)
        if existing is not None and existing.has_unread_definition and not force:
            raise unreadable(existing.name, existing.problems)
        with nullcontext() if existing is None else self.lock(existing, Job.DEFINE, ""):
            self._registry.check_free(definition)
            if existing is not None and not force:
                running = [] if existing.running is None else [existing.running.definition]
                check_images(definition, [*running, *([] if existing.persistent is None else [existing.persistent])])
            definition = await self.premises.pin(definition)
            vm = self._registry.save(definition)
        reason = Reason.ADDED if vm.persistent is None else Reason.UPDATED
        vm.persistent, vm.has_unread_definition = definition, False
        vm.forget_problem(vm.directory.definition_path)
        _mark_here(vm)
        self.events.emit(vm.uuid, vm.name, Happening.DEFINED, reason)
        _log.info("vm defined", vm=vm.name, uuid=str(vm.uuid), machine=definition.machine)
        return vm

    async def _serve_again(self, definition: Definition) -> Vm | None:
        """Serve a VM of which nothing could be read, now that there is a definition of it: its QEMU is attached to, if it runs."""
        unread = self._registry.find_unreadable(str(definition.uuid))
        named = self._registry.find_unreadable(definition.name)
        if unread is None or unread.name not in {definition.name, str(unread.uuid)} or named not in {None, unread}:
            return None  # the name is another's, which is refused
        pinned = await self.premises.pin(definition)
        if not unread.is_running:
            unread.directory.remove_running()
        unread.directory.save_definition(pinned.to_record())
        loaded = self._registry.load_one(unread.uuid)
        if loaded is None:
            return None
        vm, running = loaded
        if running is not None:
            self._engine.attach(vm, running)
        return vm

    async def undefine_unreadable(self, unread: UnreadableVm) -> None:
        """Remove a VM of which nothing can be read.

        Raises:
            WrongState: its QEMU runs, or a saved guest is kept with it.
        """
        if unread.is_running:
            pid = 0 if unread.process is None else unread.process.pid
            text = f"VM {unread.name}: its QEMU runs, process {pid}; end it first (ferry vm destroy {unread.name})"
            raise WrongState(text, reason="VM_RUNNING", vm=unread.name, pid=pid)
        if unread.directory.saved_path.exists():
            raise WrongState(
                f"VM {unread.name} has a saved guest, which would be lost; store its definition again first "
                "(ferry vm define FILE --force)",
                reason="SAVED_GUEST_KEPT",
                vm=unread.name,
            )
        self._registry.remove_unreadable(unread)
        self.events.emit(unread.uuid, unread.name, Happening.UNDEFINED, Reason.REMOVED)

    async def end_unreadable(self, unread: UnreadableVm) -> None:
        """Ensure that the QEMU has ended of a VM of which nothing can be read."""
        if unread.process is not None:
            await process.kill(unread.process)
            _log.info("vm ended", vm=unread.name, uuid=str(unread.uuid), pid=unread.process.pid)

    async def undefine(self, vm: Vm, *, force: bool = False) -> None:
        """Remove the definition of a VM; a running one is transient from now on, of a stopped one nothing is left.

        One that cannot be read is removed with `force` only.

        Raises:
            WrongState: it has none.
        """
        with self.lock(vm, Job.UNDEFINE, ""):
            if vm.has_unread_definition and not force:
                raise unreadable(vm.name, vm.problems)
            if not vm.is_persistent:
                raise WrongState(f"VM {vm.name} is transient: it has no definition to remove", reason="VM_TRANSIENT", vm=vm.name)
            if vm.has_saved_guest:
                raise WrongState(
                    f"VM {vm.name} has a saved guest, which would be lost; start it or discard that first",
                    reason="SAVED_GUEST_KEPT",
                    vm=vm.name,
                )
            self._remove_definition(vm, Reason.REMOVED)

    async def create(self, xml: bytes, origin: str, *, paused: bool = False, force: bool = False) -> Vm:
        """Start a VM that is gone when it stops; on failure nothing is left.

        With an image of which another host has a newer copy it is started with `force` only.

        Raises:
            InvalidRequest: the XML is refused; the text says where.
            WrongState: name or UUID are taken, or something that it needs is missing here, or QEMU refused.
        """
        definition = parse_domain(xml, origin)
        self.premises.check_paths(definition)
        vm = self._registry.add(definition)
        with self.lock(vm, Job.START, ""):
            await self._boot(vm, definition, paused=paused, force=force)
        return vm

    async def start(self, vm: Vm, *, paused: bool = False, force: bool = False) -> None:
        """Start a stopped VM; on return QEMU runs it, or holds it with `paused`. A saved guest is brought back.

        One whose guest was moved away while the definition stayed, or whose disks are newer on another host, is started with
        `force` only.

        Raises:
            WrongState: it runs already, or something that it needs is missing here, or QEMU refused.
        """
        if vm.has_saved_guest and self.start_saved is not None:
            await self.start_saved(vm, paused, force)
            return
        with self.lock(vm, Job.START, ""):
            if vm.running is None and vm.has_unread_definition:
                raise unreadable(vm.name, vm.problems)
            if vm.running is not None or vm.persistent is None:
                raise WrongState(f"VM {vm.name} is running already", reason="VM_RUNNING", vm=vm.name)
            if not force:
                self.older_disks.check(vm.persistent)
                _refuse_away(vm)
            await self._boot(vm, vm.persistent, paused=paused, force=force)
            _mark_here(vm)
            if vm.has_unread_wishes:  # it is here, on an operator's word
                vm.save_wishes(vm.wishes)

    async def _boot(self, vm: Vm, definition: Definition, *, paused: bool, force: bool) -> None:
        with _tracer.start_as_current_span("vm.start", attributes={"vm": vm.name}):
            if not force:
                self.older_disks.check(definition)
            self.premises.check_files(definition, Findings())
            definition, binary = await self.premises.prepare(definition)
            vm.asked_shares = find_asked(vm, definition)
            await self._start(vm, definition, binary, starts_paused=paused, migration_id=None)
            self.older_disks.forget(definition)
            self.events.emit(vm.uuid, vm.name, Happening.STARTED, Reason.BOOTED)
            if definition.current_memory_kib != definition.memory_kib:
                await self.qemu(vm).monitor.execute("balloon", {"value": definition.current_memory_kib * _KIB})

    async def stop(self, vm: Vm, *, force: bool = False, timeout_s: float = DEFAULT_STOP_TIMEOUT_S, kill: bool = False) -> None:
        """Stop a running VM: ask the guest to power off, or with `force` end its QEMU at once.

        A forced stop also ends the waiting of one that asked. With `kill` a guest that cannot hear the request, or has not powered
        off in time, loses its QEMU.

        Raises:
            WrongState: it does not run, or cannot hear the request.
            Expired: the guest has not powered off in time; it may yet.
        """
        held = self._jobs.find(vm.uuid)
        is_stopping = held is not None and held.job is Job.STOP
        with _tracer.start_as_current_span("vm.stop", attributes={"vm": vm.name, "force": force}):
            vm.get_running()
            if force and is_stopping:
                await quit_qemu(vm, self._engine, Reason.DESTROYED)
                return
            with self.lock(vm, Job.STOP, ""):
                if force:
                    await quit_qemu(vm, self._engine, Reason.DESTROYED)
                else:
                    await self._power_off(vm, timeout_s, kill=kill)

    async def _power_off(self, vm: Vm, timeout_s: float, *, kill: bool) -> None:
        try:
            await power_off(vm, timeout_s)
        except (Expired, WrongState):
            if not kill:
                raise
            await quit_qemu(vm, self._engine, Reason.DESTROYED)

    # QEMUs that somebody else started

    async def plan_adoption(self, qmp_path: Path, name: str) -> AdoptionPlan:
        """Look at the QEMU behind a QMP socket and say what adopting it would mean; nothing is changed.

        Raises:
            FerryError: it cannot be adopted; the text says why.
        """
        plan = await survey(qmp_path, name, self.all())
        self.premises.check_paths(plan.definition)
        self.premises.check_below(plan.definition)
        self._registry.check_absent(plan.definition)
        return plan

    async def adopt(self, qmp_path: Path, plan: AdoptionPlan) -> Vm:
        """Take over a running QEMU as a transient VM, whose monitor the agent has from now on.

        Raises:
            WrongState: name or UUID were taken meanwhile, or QEMU does not answer any more.
        """
        vm = self._registry.add(plan.definition)
        with self.lock(vm, Job.ADOPT, ""), _tracer.start_as_current_span("vm.adopt", attributes={"vm": vm.name}):
            running = adopted(plan.definition, plan.found.argv, plan.found.identity, qmp_path)
            vm.directory.save_running(running.to_record())
            self._engine.attach(vm, running)
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    await vm.get_keeper().wait_answering()
            except BaseException:
                await asyncio.shield(self._engine.detach(vm))
                raise
            self.events.emit(vm.uuid, vm.name, Happening.DEFINED, Reason.ADOPTED)
        _log.info("vm adopted", vm=vm.name, uuid=str(vm.uuid), pid=plan.found.identity.pid)
        return vm

    async def release(self, vm: Vm) -> Running:
        """Let go of an adopted VM: its QEMU runs on, its monitor is free, and the agent knows it no more.

        Returns:
            What it ran as.

        Raises:
            WrongState: it does not run, or was not adopted.
        """
        with self.lock(vm, Job.RELEASE, ""):
            running = vm.get_running()
            if running.qmp_path is None:
                raise WrongState(
                    f"VM {vm.name} was started by Ferry; only an adopted VM can be released", reason="VM_NOT_ADOPTED", vm=vm.name
                )
            await self._engine.detach(vm)
            self.events.emit(vm.uuid, vm.name, Happening.UNDEFINED, Reason.RELEASED)
        return running

    # What migrations do

    async def start_incoming(
        self, definition: Definition, migration_id: str, asked_shares: AskedShares | None = None
    ) -> tuple[Vm, JobLock]:
        """Start QEMU to wait for a guest; the VM is transient, locked as *migration in*, and not here for good.

        `definition` is the running definition of the source. On failure nothing is left but what was here before.

        Raises:
            InvalidRequest: the definition cannot be built here.
            WrongState: name or UUID are taken, a file, memory, the machine type, the CPU model or the accelerator is
                missing here, or QEMU refused.
        """
        vm = self._registry.take_in(definition)
        lock = self.lock(vm, Job.MIGRATION_IN, migration_id)
        try:
            self.premises.check_host(definition, Findings())
            pinned, binary = await self.premises.prepare(definition)
            vm.asked_shares = asked_shares
            await self._start(vm, pinned, binary, starts_paused=True, migration_id=migration_id)
        except BaseException:
            lock.release()
            raise
        self.events.emit(vm.uuid, vm.name, Happening.STARTED, Reason.MIGRATED)
        return vm, lock

    async def check_startable(self, definition: Definition, findings: Findings) -> None:
        """Require that a VM that comes without its guest could be started here later.

        Raises:
            InvalidRequest: a file lies outside of the configured directories, unless `findings` collects that.
            WrongState: name or UUID are taken, or a file, the machine type or the CPU model is missing here, likewise.
        """
        with findings.check():
            self._registry.check_room(definition)
        await self.premises.check_startable(definition, findings)

    def reserve_incoming(self, definition: Definition, migration_id: str) -> tuple[Vm, JobLock]:
        """Reserve name and UUID of a stopped VM whose definition comes, locked as *migration in*; it is not here for good.

        Raises:
            WrongState: one is taken.
        """
        vm = self._registry.take_in(definition)
        return vm, self.lock(vm, Job.MIGRATION_IN, migration_id)

    async def check_incoming(
        self, definition: Definition, findings: Findings, *, to_come: Container[str] = ()
    ) -> tuple[Definition, Path] | None:
        """Collect what `start_incoming` would refuse; return what would be started and with which QEMU, if that is known."""
        with findings.check():
            self._registry.check_room(definition)
        self.premises.check_host(definition, findings, to_come=to_come)
        with findings.check():
            return await self.premises.prepare(definition)
        return None

    def keep_here(self, lock: JobLock) -> None:
        """Note durably that an incoming guest is here for good: from now on `forget` refuses. May be repeated."""
        vm = self._locked(lock, Job.MIGRATION_IN, Job.RESTORE)
        running = vm.get_running()
        if running.migration_id is not None:
            running = replace(running, migration_id=None)
            vm.directory.save_running(running.to_record())
            vm.running = running
        self.older_disks.forget(vm.definition)
        _mark_here(vm)

    def persist(self, lock: JobLock, stored: Stored) -> None:
        """Keep a VM that has come, as the source did. May be repeated."""
        vm = self._locked(lock, Job.MIGRATION_IN)
        ran = vm.last_definition if vm.running is None else vm.running.definition
        definition = stored.definition or replace(ran, accelerator=None)
        shares = stored.cpu_shares if vm.running is None else vm.live.cpu_shares
        wishes = Wishes(stored.autostart, Tunables(shares))
        if (vm.persistent, vm.wishes) == (definition, wishes):
            return
        self._registry.save(definition)
        vm.persistent = definition
        vm.save_wishes(wishes)
        self.events.emit(vm.uuid, vm.name, Happening.DEFINED, Reason.MIGRATED)

    async def forget(self, lock: JobLock) -> None:
        """End an incoming QEMU by SIGKILL and remove every trace of the VM, but a definition that had stayed here.

        May be repeated while the lock is held.

        Raises:
            WrongState: the guest is here for good.
        """
        vm = self._locked(lock, Job.MIGRATION_IN)
        if (vm.is_persistent and not vm.wishes.moved_to) or (vm.running is not None and not vm.is_incoming):
            raise WrongState(f"VM {vm.name} is here for good", reason="GUEST_RAN_HERE", vm=vm.name)
        await self._engine.kill(vm, Reason.FAILED)

    async def drop(self, lock: JobLock, *, kept_for: str = "") -> None:
        """Let a guest go that runs elsewhere: its QEMU here quits, its definition is removed. May be repeated.

        With `kept_for`, the host that it runs on, the definition stays, and does not start while its guest is there.
        """
        vm = self._locked(lock, Job.MIGRATION_OUT)
        if vm.running is not None:
            await quit_qemu(vm, self._engine, Reason.MIGRATED)
        if kept_for and vm.persistent is not None:
            self.leave(lock, kept_for)
        else:
            self._remove_definition(vm, Reason.MIGRATED)

    def leave(self, lock: JobLock, kept_for: str) -> None:
        """Let the definition of a guest that went to another host, and ended there, wait for it. May be repeated."""
        vm = self._locked(lock, Job.MIGRATION_OUT)
        if vm.persistent is not None:
            vm.save_wishes(replace(vm.wishes, autostart=False, moved_to=kept_for))

    async def end_lost(self, lock: JobLock) -> None:
        """End the QEMU of a guest that was lost at its destination; its definition stays. May be repeated."""
        await quit_qemu(self._locked(lock, Job.MIGRATION_OUT), self._engine, Reason.FAILED)

    # What saving and restoring do

    async def end_saved(self, lock: JobLock) -> None:
        """Let the QEMU quit whose guest is in a file. May be repeated."""
        await quit_qemu(self._locked(lock, Job.SAVE), self._engine, Reason.SAVED)

    def reserve(self, definition: Definition, job_id: str) -> tuple[Vm, JobLock]:
        """Take the stopped VM that a saved guest belongs to, or its name and UUID, locked as *restore*.

        A VM that is made for this is transient, and gone when the lock is released before it runs.

        Raises:
            InvalidRequest: a path of the definition lies outside of the operator's directories.
            WrongState: it runs, or name or UUID are another VM's.
            Busy: a job holds the VM.
        """
        self.premises.check_paths(definition)
        vm = self._registry.find(definition.uuid) or self._registry.add(definition)
        lock = self.lock(vm, Job.RESTORE, job_id)
        try:
            self._registry.check_free(definition)
            _check_stopped(vm)
        except BaseException:
            lock.release()
            raise
        return vm, lock

    async def start_restoring(self, lock: JobLock, definition: Definition) -> None:
        """Start QEMU to wait for the guest of a file; it is not here for good. On failure no QEMU is left.

        Raises:
            WrongState: a file, memory, the machine type, the CPU model or the accelerator is missing here, or QEMU refused.
        """
        vm = self._locked(lock, Job.RESTORE)
        self.premises.check_files(definition, Findings())
        self.premises.check_memory(definition)
        pinned, binary = await self.premises.prepare(definition)
        vm.asked_shares = find_asked(vm, pinned)
        await self._start(vm, pinned, binary, starts_paused=True, migration_id=lock.holder_id)
        self.events.emit(vm.uuid, vm.name, Happening.STARTED, Reason.RESTORED)

    async def end_restoring(self, lock: JobLock) -> None:
        """End a QEMU whose guest is not here for good. May be repeated."""
        vm = self._locked(lock, Job.RESTORE)
        if vm.is_incoming:
            await self._engine.kill(vm, Reason.FAILED)

    # How

    async def _start(self, vm: Vm, definition: Definition, binary: Path, *, starts_paused: bool, migration_id: str | None) -> None:
        """Start QEMU, and end it where it has opened what it may not: an image can be changed after it was checked.

        Raises:
            FerryError: it does not start, or had to be ended.
        """
        await self._engine.start(vm, definition, binary, starts_paused=starts_paused, migration_id=migration_id)
        try:
            await self.premises.check_opened(self.qemu(vm))
        except BaseException:
            await asyncio.shield(self._engine.kill(vm, Reason.FAILED))
            raise

    def _remove_definition(self, vm: Vm, reason: Reason) -> None:
        if vm.is_persistent:
            vm.directory.remove_definition()
            vm.last_definition, vm.persistent, vm.wishes = vm.persistent or vm.last_definition, None, Wishes()
            vm.problems, vm.has_unread_definition, vm.has_unread_wishes = (), False, False
            self.events.emit(vm.uuid, vm.name, Happening.UNDEFINED, reason)
            _log.info("vm undefined", vm=vm.name, uuid=str(vm.uuid))

    def _locked(self, lock: JobLock, *jobs: Job) -> Vm:
        vm = self._registry.find(lock.vm_uuid)
        if vm is None or lock.job not in jobs or not lock.is_held:
            raise Bug(f"a lock for {lock.job.value} of VM {lock.vm_uuid} where {jobs[0].value} is needed")
        return vm

    def _find_job(self, uuid: UUID) -> Job | None:
        lock = self._jobs.find(uuid)
        return None if lock is None else lock.job

    def _settle(self, uuid: UUID) -> None:
        """Remove a VM that neither runs nor is defined once nobody holds it: until then its last words are kept."""
        if uuid in self._unclaimed:
            return
        vm = self._registry.find(uuid)
        if vm is not None:
            self._engine.note_run_state(vm)
        if vm is not None and vm.running is None and not vm.is_persistent and self._jobs.find(uuid) is None:
            with storage_may_fail(vm, "that it is gone is not on record"):
                self._registry.remove(vm)


def _check_stopped(vm: Vm) -> None:
    if vm.running is not None:
        raise WrongState(f"VM {vm.name} is running already", reason="VM_RUNNING", vm=vm.name)


def _mark_here(vm: Vm) -> None:
    """Forget that the guest of a VM was elsewhere."""
    if vm.wishes.moved_to:
        vm.save_wishes(replace(vm.wishes, moved_to=""))


def _refuse_away(vm: Vm) -> None:
    if vm.has_unread_wishes:
        why = "; ".join(one.text for one in vm.problems)
        raise WrongState(
            f"VM {vm.name}: whether its guest was moved to another host cannot be read ({why}): started here it may run twice; "
            "start it with --force if it runs nowhere else",
            reason="RECORD_BROKEN",
            vm=vm.name,
        )
    if vm.wishes.moved_to:
        raise WrongState(
            f"VM {vm.name} was moved to {vm.wishes.moved_to} and only its definition stayed here: started here it may run twice; "
            "move it back, or start it with --force if it runs nowhere any more",
            reason="VM_MOVED_AWAY",
            vm=vm.name,
            host=vm.wishes.moved_to,
        )
