"""Begin: the source takes the guest's job lock, looks at it, and describes it. Nothing of the guest is changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from dataclasses import dataclass, replace

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.migration import outgoing as out
from agent.migration.abilities import source_ability
from agent.migration.adaptation import adapt, elsewhere
from agent.migration.checks import guest_cpu
from agent.migration.clocks import now_era, wall_s
from agent.migration.disk_facts import describe_disks, refuse_jobs
from agent.migration.disk_wishes import Which
from agent.migration.left_behind import bitmaps_of_disks, transient_bitmaps
from agent.migration.lost_memory import memory_warnings
from agent.migration.named_files import prove_files
from agent.migration.order import Begun, DiskFacts, DiskMarker, Role, SourceFacts, Wish
from agent.migration.record import Facts, Record
from agent.migration.shared_disks import leave_beside_markers, paths_of, remove_markers, unless_lost, write_markers
from agent.migration.source import SourceSession
from agent.migration.surroundings import Surroundings
from agent.qemu.block_status import Bitmap
from agent.qemu.commands import Qemu
from agent.qemu.endings import refusal_of
from agent.qemu.ram_blocks import query_ram_blocks
from agent.qemu.status import MigrationStatus, RunState
from agent.vm.bridges import card_mtus
from agent.vm.definition import Accelerator, Definition
from agent.vm.disk_images import placed
from agent.vm.image_activation import ensure_own_images
from agent.vm.jobs import Job, JobLock
from agent.vm.stored import Stored, find_stored
from agent.vm.vm import Vm
from common.errors import WrongState
from common.findings import Findings

TOKEN_BYTES = 32
# What a post-copy that failed may leave a guest in that runs again. QEMU takes no migration then.
_NEVER_ENDS = (MigrationStatus.DEVICE, MigrationStatus.POSTCOPY_DEVICE, MigrationStatus.POSTCOPY_RECOVER)
_MOVABLE = (RunState.RUNNING, RunState.PAUSED, RunState.PRELAUNCH)


async def begin(around: Surroundings, wish: Wish) -> tuple[SourceSession, Begun]:
    """Take a running VM for a migration.

    Raises:
        NotFound: this host has no such VM.
        WrongState: it does not run, or is in a state that cannot be moved, or another process uses an image of its.
        Busy: another job holds it.
    """
    vm = get_running_vm(around, wish.vm)
    lock = around.vms.lock(vm, Job.MIGRATION_OUT, wish.migration_id)
    try:
        await ensure_own_images(around.vms.qemu(vm), vm.name)
        seen = await look(around, vm, wish, Findings())
        with unless_lost(seen.markers, around.store):
            return open_session(around, vm, lock, wish, seen)
    except BaseException:
        lock.release()
        raise


def get_running_vm(around: Surroundings, name_or_uuid: str) -> Vm:
    """Get a VM that runs here.

    Raises:
        NotFound: this host has no such VM.
        WrongState: it does not run.
        Busy: a migration brings it here.
    """
    vm = around.vms.get(name_or_uuid)
    if vm.is_incoming and (held := around.vms.lock_of(vm)) is not None:
        raise held.refusal(vm.name)
    if vm.running is None or vm.is_incoming:
        raise WrongState(
            f"VM {vm.name} is not running on {around.identity.name}: its guest cannot be moved; start it first, "
            "or move its definition alone (--offline)",
            reason="VM_NOT_RUNNING",
            vm=vm.name,
        )
    return vm


@dataclass(frozen=True, slots=True)
class Look:
    """What Begin sees of a guest.

    Attributes:
        definition: as the destination is to have it.
        risks: what the user has taken on himself.
        is_running: whether its vCPUs run.
    """

    definition: Definition
    facts: SourceFacts
    risks: tuple[str, ...]
    markers: tuple[DiskMarker, ...]
    is_running: bool


async def look(around: Surroundings, vm: Vm, wish: Wish, findings: Findings) -> Look:
    """Check a running guest and describe it; leaves markers beside its images.

    Raises:
        FerryError: it cannot be moved, unless `findings` collects that.
    """
    qemu, running = around.vms.qemu(vm), vm.get_running()
    state = await qemu.query_status()
    with findings.check():
        if state not in _MOVABLE:
            raise WrongState(refusal_of(state, vm.name), reason="VM_NOT_MOVABLE", vm=vm.name)
    with findings.check():
        await _check_blockers(vm, qemu)
    ability = await source_ability(qemu, around.identity.name, running, wish.options, findings)
    definition = running.definition
    with findings.check():
        if wish.destination_xml:
            definition = await asyncio.to_thread(adapt, definition, wish.destination_xml, name=wish.options.destination_name)
        definition = place_disks(definition, wish)
    with findings.check():
        await refuse_jobs(qemu.block, vm.name)
    stored, losses = _what_is_kept(vm, wish)
    version, machine, cpu_words = await qemu.query_version(), await qemu.machine_type(), await guest_cpu(qemu)
    lost: tuple[str, ...] = ()
    if running.accelerator is Accelerator.TCG:
        with findings.check():
            may_post_copy = wish.options.post_copy.is_allowed
            still = wish.options.pause or state is not RunState.RUNNING
            lost = memory_warnings(await query_ram_blocks(qemu), version, stands_still=still, may_post_copy=may_post_copy)
    disks: tuple[DiskFacts, ...] = ()
    with findings.check():
        disks = await describe_disks(qemu.block, running.definition, definition, wish.options.disks, around.store)
    bitmaps = await _find_bitmaps(qemu, running.definition)
    disks = tuple(
        replace(disk, bitmaps=tuple(one.name for one in bitmaps.get(disk.disk, ()) if one.is_persistent)) for disk in disks
    )
    files = await asyncio.to_thread(prove_files, running.definition, None if running.process is None else running.process.pid)
    backings = tuple(disk.backing_marker for disk in disks if disk.backing_marker is not None)
    beside: tuple[DiskMarker, ...] = ()
    with unless_lost(backings, around.store), findings.check():
        beside = leave_beside_markers(running.definition, around.store)
    backings = (*backings, *beside)
    markers, risks = _leave_markers(around, running.definition, wish, findings, backings)
    with unless_lost((*markers, *backings), around.store):
        moved_markers = elsewhere(markers, running.definition, definition)
    facts = SourceFacts(
        host=around.identity,
        qemu_version=str(version),
        machine=machine,
        cpu_words=cpu_words,
        disk_markers=moved_markers,
        cpu_shares=definition.cpu_shares if wish.destination_xml else vm.live.cpu_shares,
        cgroup_version="" if vm.live.cgroup is None else vm.live.cgroup.value,
        known=ability.known,
        stored=b"" if stored is None else stored.to_bytes(),
        disks=disks,
        files=files,
        beside_markers=beside,
        card_mtus=await asyncio.to_thread(card_mtus, running.definition),
    )
    transient = (risk for disk, found in bitmaps.items() for risk in transient_bitmaps(disk, found))
    risks = (*lost, *risks, *losses, *transient)
    return Look(definition, facts, risks, (*markers, *backings), state is RunState.RUNNING)


async def _find_bitmaps(qemu: Qemu, definition: Definition) -> dict[str, tuple[Bitmap, ...]]:
    return bitmaps_of_disks(definition, await qemu.block.query_drives(), await qemu.block.query_bitmaps())


def _leave_markers(
    around: Surroundings, definition: Definition, wish: Wish, findings: Findings, backings: tuple[DiskMarker, ...]
) -> tuple[tuple[DiskMarker, ...], tuple[str, ...]]:
    """Leave a marker beside each image; when that is refused, the ones beside images below go too."""
    may_copy = wish.options.disks.which is not Which.NONE
    try:
        with findings.check():
            return write_markers(definition, around.store, force=wish.options.force, may_copy=may_copy)
    except BaseException:
        remove_markers(paths_of(backings), around.store)
        raise
    return (), ()


def open_session(around: Surroundings, vm: Vm, lock: JobLock, wish: Wish, seen: Look) -> tuple[SourceSession, Begun]:
    """Make the source's half of what was seen."""
    token = secrets.token_bytes(TOKEN_BYTES)
    record = Record[out.Phase](
        Facts(
            migration_id=wish.migration_id,
            role=Role.SOURCE,
            vm_uuid=str(vm.uuid),
            vm_name=vm.name,
            options=wish.options,
            epoch=wish.epoch,
            began_at_s=wall_s(),
            era=now_era(),
            token=token.hex(),
            token_sha256=hashlib.sha256(token).hexdigest(),
            guest_was_paused=not seen.is_running,
            traceparent=current_traceparent(),
            warnings=seen.risks,
            made_files=paths_of(seen.markers),
        ),
        out.Begun(),
    )
    session = SourceSession(record, around=around, vm=vm, lock=lock, parent=otel_context.get_current())
    return session, Begun(json.dumps(seen.definition.to_record()).encode(), hashlib.sha256(token).digest(), seen.facts)


def place_disks(definition: Definition, wish: Wish) -> Definition:
    """Return the definition with disks where they are wished to lie on the destination.

    Raises:
        InvalidRequest: there is no such disk, or no file for it.
    """
    for disk, path in wish.options.disks.place_of.items():
        definition = placed(definition, disk, path)
    return definition


def _what_is_kept(vm: Vm, wish: Wish) -> tuple[Stored | None, tuple[str, ...]]:
    """Return what this host keeps of a VM, and what of that gets lost by what the user wishes."""
    stored = find_stored(vm)
    if stored is None:
        return None, ()
    modes = wish.options.modes
    if not modes.is_persistent(on_source=True) and not modes.keeps_source_definition:
        return stored, (f"no host keeps the definition of VM {vm.name}: the VM is gone when it stops",)
    if wish.destination_xml and stored.definition is not None and vm.running is not None:
        lost = f"the stored definition of VM {vm.name}, which differs from what runs, does not go along: --xml takes its place"
        return replace(stored, definition=None), (lost,)
    return stored, ()


async def _check_blockers(vm: Vm, qemu: Qemu) -> None:
    """Refuse a guest with what cannot migrate: by its definition, and by QEMU's own word."""
    report = await qemu.query_migrate()
    if report.status in _NEVER_ENDS:
        text = f"its QEMU is still in an earlier migration ({report.status_text}), which never ends; stop it and start it again"
        raise WrongState(f"VM {vm.name} cannot migrate: {text}", reason="VM_CANNOT_MIGRATE", vm=vm.name)
    blocked = report.blocked_reasons
    reasons = [*vm.get_running().definition.blockers, *(reason.strip() for reason in blocked)]
    if reasons:
        raise WrongState(f"VM {vm.name} cannot migrate: {'; '.join(reasons)}", reason="VM_CANNOT_MIGRATE", vm=vm.name)


def current_traceparent() -> str:
    """Return the W3C trace context of the current request; empty when it has none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def context_of(traceparent: str) -> otel_context.Context:
    """Return the context that `current_traceparent` told of."""
    if not traceparent:
        return trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context())
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, otel_context.Context())
