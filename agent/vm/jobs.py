"""One job at a time for each VM, and one for each of its disks while no job of the VM needs the disks as they are.

A lock is a fact in memory: after a restart of the agent whoever owns the job takes it again, under the same id, before
the agent serves requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

from common.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from uuid import UUID


class Job(Enum):
    """What may hold a VM."""

    DEFINE = "define"
    START = "start"
    STOP = "stop"
    UNDEFINE = "undefine"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    SET = "set"
    ADOPT = "adopt"
    RELEASE = "release"
    MIGRATION_OUT = "migration-out"
    MIGRATION_IN = "migration-in"
    SAVE = "save"
    RESTORE = "restore"
    DUMP = "dump"


MIGRATIONS = frozenset({Job.MIGRATION_OUT, Job.MIGRATION_IN})
# What takes the guest with its disks elsewhere, or lets go of it; and what begins anew, where it is not known with which image.
_NEEDS_DISKS = frozenset({Job.MIGRATION_OUT, Job.SAVE, Job.RELEASE, Job.START, Job.RESTORE, Job.MIGRATION_IN})


class JobLock:
    """A VM's lock; `release` may be called more than once."""

    def __init__(self, vm_uuid: UUID, job: Job, holder_id: str, on_release: Callable[[JobLock], None]) -> None:
        self.vm_uuid = vm_uuid
        self.job = job
        self.holder_id = holder_id
        self._on_release = on_release
        self.is_held = True
        self.why = ""  # more than the name of the job, for whoever is refused
        self.is_starved = False  # QEMU waits for the guest's memory and may leave ordinary commands unanswered

    def refusal(self, vm_name: str) -> Busy:
        """Make the refusal of the VM to others; its text names the job and its id."""
        named = f"{self.job.value} {self.holder_id}".strip()
        return Busy(
            f"VM {vm_name} is busy: {named}{': ' if self.why else ''}{self.why}",
            reason="VM_BUSY",
            vm=vm_name,
            job=self.job.value,
            migration=self.holder_id,
        )

    def release(self) -> None:
        """Let others have the VM."""
        if self.is_held:
            self.is_held = False
            self._on_release(self)

    def __enter__(self) -> Self:
        """Hold the lock for a block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Release it."""
        self.release()


@dataclass(frozen=True, slots=True)
class DiskLock:
    """A job on one disk of a VM; `why` is more than its name, for whoever is refused."""

    vm_uuid: UUID
    disk: str
    what: str
    holder_id: str
    why: str = ""

    def refusal(self, vm_name: str) -> Busy:
        """Make the refusal of the disk to others."""
        why = self.why or f"ferry block abort {vm_name} {self.disk} ends it"
        return Busy(
            f"disk {self.disk} of VM {vm_name} is busy: {self.what} {self.holder_id}; {why}",
            reason="DISK_BUSY",
            vm=vm_name,
            disk=self.disk,
            job=self.holder_id,
        )


class Jobs:
    """Who holds which VM, and which disks."""

    def __init__(self, on_release: Callable[[UUID], None]) -> None:
        self._locks: dict[UUID, JobLock] = {}
        self._disks: dict[tuple[UUID, str], DiskLock] = {}
        self._on_release = on_release

    def find(self, vm_uuid: UUID) -> JobLock | None:
        """Find the lock that holds a VM."""
        return self._locks.get(vm_uuid)

    def take(self, vm_uuid: UUID, vm_name: str, job: Job, holder_id: str) -> JobLock:
        """Take the lock of a VM; again by the same job and id gives the same lock.

        Raises:
            Busy: another job holds it, or a disk that this one needs; the text names the job and its id.
        """
        held = self._locks.get(vm_uuid)
        if held is None:
            if job in _NEEDS_DISKS and (disks := self.disk_locks(vm_uuid)):
                raise disks[0].refusal(vm_name)
            lock = self._locks[vm_uuid] = JobLock(vm_uuid, job, holder_id, self._release)
            return lock
        if holder_id and (held.job, held.holder_id) == (job, holder_id):
            return held
        raise held.refusal(vm_name)

    def disk_locks(self, vm_uuid: UUID) -> tuple[DiskLock, ...]:
        """List the jobs on disks of a VM."""
        return tuple(lock for (uuid, _), lock in self._disks.items() if uuid == vm_uuid)

    def take_disk(self, vm_name: str, lock: DiskLock) -> None:
        """Take a disk; again by the same holder changes nothing.

        Raises:
            Busy: another job holds the disk or the VM; the text names it.
        """
        held = self._disks.get((lock.vm_uuid, lock.disk))
        if held is not None and held.holder_id != lock.holder_id:
            raise held.refusal(vm_name)
        if held is None and (of_vm := self._locks.get(lock.vm_uuid)) is not None:
            raise of_vm.refusal(vm_name)
        self._disks[lock.vm_uuid, lock.disk] = lock

    def keep_disk(self, lock: DiskLock) -> None:
        """Hold a disk for a job that an earlier agent began, whoever else holds the VM."""
        self._disks[lock.vm_uuid, lock.disk] = lock

    def release_disk(self, lock: DiskLock) -> None:
        """Let others have the disk."""
        held = self._disks.get((lock.vm_uuid, lock.disk))
        if held is not None and held.holder_id == lock.holder_id:
            del self._disks[lock.vm_uuid, lock.disk]

    def _release(self, lock: JobLock) -> None:
        if self._locks.get(lock.vm_uuid) is lock:
            del self._locks[lock.vm_uuid]
            self._on_release(lock.vm_uuid)
