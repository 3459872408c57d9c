"""Going on with a half whose record cannot be read: by what is left of the record, and by what its QEMU says.

Before the decision was written the transfer is stopped in QEMU and the guest stays; after it the half goes on if what it needs is
left, else it is held where it is, until an operator ends it. Nothing is guessed that QEMU can tell.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.clocks import now_era, now_s
from agent.migration.machine import Cause
from agent.migration.order import Role
from agent.migration.record import Facts, Record
from agent.qemu.errors import QemuGone
from agent.qemu.status import MigrationReport, MigrationStatus, RunState
from agent.vm.jobs import Job, JobLock
from agent.vm.stored import Stored
from common.errors import FerryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from uuid import UUID

    from agent.migration.remains import Remains
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

REASON: Final = "RECORD_BROKEN"
ASK_INTERVAL_S: Final = 0.5

_UNDECIDED: Final = frozenset(
    one.__name__ for one in (out.Begun, out.Mirroring, out.Connecting, out.Transferring, out.Settling, out.Leaving)
)
_EMPTY: Final = frozenset(one.__name__ for one in (inc.Reserved, inc.Listening, inc.Loading))
_POST_COPY: Final = frozenset(
    {
        MigrationStatus.POSTCOPY_DEVICE,
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
        MigrationStatus.POSTCOPY_RECOVER_SETUP,
        MigrationStatus.POSTCOPY_RECOVER,
    }
)
_AFTER_SENDING: Final = frozenset({RunState.POSTMIGRATE, RunState.FINISH_MIGRATE})


@dataclass(frozen=True, slots=True)
class Sight:
    """What a VM's QEMU says; `status` and `state` are None when it has ended."""

    status: MigrationStatus | None = None
    state: RunState | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self.state is None

    @property
    def sends(self) -> bool:
        """Whether it sends its guest, or has sent it."""
        if self.status is MigrationStatus.COMPLETED:
            return self.state in _AFTER_SENDING
        idle = self.status is None or self.status is MigrationStatus.NONE or self.status.is_final
        return not idle and self.state is not RunState.INMIGRATE


async def look(vm: Vm | None) -> Sight:
    """Ask a VM's QEMU until it answers or has ended; has no deadline of its own."""
    while vm is not None and await vm.wait_attached() is not None:
        try:
            qemu = vm.get_keeper().qemu
            report: MigrationReport = await qemu.query_migrate()
            return Sight(report.status, await qemu.query_status())
        except QemuGone:
            break
        except FerryError:
            await asyncio.sleep(ASK_INTERVAL_S)
    return Sight()


def source_record(remains: Remains, facts: Facts, seen: Sight, cause: Cause) -> Record[out.Phase]:
    """Say where the source's half goes on."""
    facts = facts.in_era(now_era())
    phase = _source_phase(remains, facts, seen, cause)
    if facts.timeline.started_at_s is None and not isinstance(phase, out.Begun | out.Keeping):
        # Whether `migrate` was sent is not known any more; asked of QEMU it does no harm.
        facts = replace(facts, timeline=replace(facts.timeline, started_at_s=now_s()))
    return Record(_told(facts, cause), phase)


def _source_phase(remains: Remains, facts: Facts, seen: Sight, cause: Cause) -> out.Phase:
    known = remains.source_phase()
    can_hand_over = bool(facts.token and facts.peer_address)
    is_undecided = (type(known).__name__ if known is not None else remains.phase_name) in _UNDECIDED
    if known is not None and not is_undecided and (can_hand_over or not isinstance(known, out.Switching)):
        return known
    if seen.is_gone:
        return out.Lost(cause) if is_undecided else out.Sent(qemu_is_gone=True)
    if seen.status is MigrationStatus.POSTCOPY_PAUSED:
        return out.Broken()
    if seen.status in _POST_COPY:
        return out.Following()
    if not seen.sends:
        return out.Keeping(cause)
    return out.Sent() if seen.status is MigrationStatus.COMPLETED else out.Cancelling(cause, was_switching=True)


def destination_record(remains: Remains, facts: Facts, seen: Sight, cause: Cause) -> Record[inc.Phase]:
    """Say where the destination's half goes on."""
    facts = facts.in_era(now_era())
    phase = _destination_phase(remains, seen, cause)
    has_run = isinstance(phase, inc.Running | inc.Filling | inc.Finished)
    if "stored" not in remains.facts:  # nobody has wished that it be gone when it stops
        facts = replace(facts, stored=Stored())
    return Record(_told(replace(facts, guest_ran=facts.guest_ran or has_run), cause), phase)


def _destination_phase(remains: Remains, seen: Sight, cause: Cause) -> inc.Phase:
    known = remains.destination_phase()
    is_empty = (type(known).__name__ if known is not None else remains.phase_name) in _EMPTY
    if known is not None and not is_empty:
        return known
    if seen.is_gone:
        return inc.Undoing(cause) if is_empty else inc.Lost(cause)
    if seen.status in _POST_COPY:
        return inc.Filling() if seen.state is RunState.RUNNING else inc.Arrived()
    if seen.state is RunState.RUNNING:
        return inc.Running()
    return inc.Loaded() if seen.status is MigrationStatus.COMPLETED else inc.Undoing(cause)


def _told(facts: Facts, cause: Cause) -> Facts:
    return replace(facts, warnings=(*facts.warnings, cause.text))


def cause_of(role: Role, host: str, path: Path, error: FerryError) -> Cause:
    """Say why a half does not go on as it was."""
    half = "source" if role is Role.SOURCE else "destination"
    why = error.text if str(path) in error.text else f"{path}: {error.text}"
    return Cause(f"what {host}, its {half}, had on record of this migration could not be read ({why})", REASON)


@dataclass(frozen=True, slots=True)
class Held:
    """A VM that is held for a record that cannot be read."""

    vm: Vm
    lock: JobLock


@dataclass(frozen=True, slots=True)
class FoundHalf:
    """What a record that cannot be read is about; `vm` is None where it is gone."""

    role: Role
    vm_uuid: UUID
    vm_name: str
    vm: Vm | None
    lock: JobLock | None
    seen: Sight


def hold(vms: Vms, migration_id: str, remains: Remains) -> list[Held]:
    """Take the VM that a record is about; where the record does not say which, every one that it may be about.

    Raises:
        Busy: another migration holds it.
        WrongState: what is on record of that VM cannot be read either.
    """
    if remains.is_over:
        return []
    uuid = remains.vm_uuid
    if uuid is not None:
        known = vms.find(uuid)
        if known is None and (unread := vms.find_unreadable(str(uuid))) is not None:
            raise unread.refusal()
        job = Job.MIGRATION_IN if remains.role is Role.DESTINATION else Job.MIGRATION_OUT
        return [] if known is None else [Held(known, vms.lock(known, job, migration_id))]
    running = [vm for vm in vms.all() if vm.running is not None and vms.lock_of(vm) is None]
    coming = [vm for vm in running if vm.running is not None and vm.running.migration_id == migration_id]
    if coming:
        return [Held(vm, vms.lock(vm, Job.MIGRATION_IN, migration_id)) for vm in coming]
    return [Held(vm, vms.lock(vm, Job.MIGRATION_OUT, migration_id)) for vm in running if not vm.is_incoming]


async def find_half(remains: Remains, holds: Sequence[Held]) -> FoundHalf | None:
    """Find what a record is about, by itself or by what QEMUs say; all others are let go. None where no guest is."""
    uuid = remains.vm_uuid
    found: FoundHalf | None = None
    for held in holds:
        seen = await look(held.vm)
        is_it = uuid is not None or held.lock.job is Job.MIGRATION_IN or seen.sends
        if found is None and is_it:
            role = Role.DESTINATION if held.lock.job is Job.MIGRATION_IN else Role.SOURCE
            found = FoundHalf(role, held.vm.uuid, held.vm.name, held.vm, held.lock, seen)
        else:
            held.lock.release()
    if found is None and uuid is not None and remains.role is not None and (not remains.is_over or remains.is_final):
        return FoundHalf(remains.role, uuid, str(remains.facts.get("vm_name", uuid)), None, None, Sight())
    return found
