"""What happened to the VMs of this host, numbered, the last thousand of it.

A follower that falls behind loses the oldest events and can tell from the numbers. Numbers begin at 1 with each start
of the agent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

RING_LENGTH = 1000


class Happening(Enum):
    """What happened."""

    DEFINED = "DEFINED"
    UNDEFINED = "UNDEFINED"
    STARTED = "STARTED"
    SUSPENDED = "SUSPENDED"
    RESUMED = "RESUMED"
    STOPPED = "STOPPED"
    RESET = "RESET"
    CRASHED = "CRASHED"
    TUNABLE = "TUNABLE"
    AUTOSTART = "AUTOSTART"
    JOB = "JOB"
    BLOCK_JOB = "BLOCK_JOB"


class Reason(Enum):
    """Why it happened."""

    ADDED = "ADDED"
    UPDATED = "UPDATED"
    REMOVED = "REMOVED"
    ADOPTED = "ADOPTED"
    RELEASED = "RELEASED"
    BOOTED = "BOOTED"
    MIGRATED = "MIGRATED"
    PAUSED = "PAUSED"
    UNPAUSED = "UNPAUSED"
    SHUTDOWN = "SHUTDOWN"
    DESTROYED = "DESTROYED"
    CRASHED = "CRASHED"
    FAILED = "FAILED"
    IO_ERROR = "IO_ERROR"
    WATCHDOG = "WATCHDOG"
    PANICKED = "PANICKED"
    GUEST = "GUEST"
    HOST = "HOST"
    CLAMPED = "CLAMPED"
    CONVERTED = "CONVERTED"
    SAVED = "SAVED"
    RESTORED = "RESTORED"
    INTERRUPTED = "INTERRUPTED"
    READY = "READY"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class DiskJob:
    """What a BLOCK_JOB event tells; its reason is the status.

    Attributes:
        path: the image that the guest writes to.
        target: the name of the disk.
        type: `copy`, `pull`, `commit`, or `active-commit`.
    """

    id: str
    path: str
    target: str
    type: str


@dataclass(frozen=True, slots=True)
class VmEvent:
    """One change in the life of a VM.

    Attributes:
        sequence: number in this run of the agent, from 1.
        at_s: wall clock of the host.
        detail: a sentence for people; may be empty.
        tunables: the values that a TUNABLE event tells of.
        disk_job: what a BLOCK_JOB event tells of.
    """

    sequence: int
    at_s: float
    vm_uuid: UUID
    vm_name: str
    happening: Happening
    reason: Reason
    detail: str
    tunables: Mapping[str, int] = field(default_factory=dict)
    disk_job: DiskJob | None = None


class VmEvents:
    """The ring of events and its followers."""

    def __init__(self, wall_clock: Callable[[], float], *, length: int = RING_LENGTH) -> None:
        self.wall_clock = wall_clock
        self._ring: deque[VmEvent] = deque(maxlen=length)
        self._last_sequence = 0
        self._changed = asyncio.Event()

    def emit(self, vm_uuid: UUID, vm_name: str, happening: Happening, reason: Reason, detail: str = "") -> VmEvent:
        """Add an event and wake the followers."""
        return self._add(VmEvent(self._last_sequence + 1, self.wall_clock(), vm_uuid, vm_name, happening, reason, detail))

    def emit_tunable(self, vm_uuid: UUID, vm_name: str, reason: Reason, tunables: Mapping[str, int]) -> VmEvent:
        """Add an event that tells values which hold from now on."""
        said = ", ".join(f"{name} {value}" for name, value in tunables.items())
        sequence, at_s = self._last_sequence + 1, self.wall_clock()
        return self._add(VmEvent(sequence, at_s, vm_uuid, vm_name, Happening.TUNABLE, reason, said, tunables))

    def emit_disk_job(self, vm_uuid: UUID, vm_name: str, reason: Reason, job: DiskJob, detail: str = "") -> VmEvent:
        """Add an event that tells how a job on a disk stands."""
        sequence, at_s = self._last_sequence + 1, self.wall_clock()
        return self._add(VmEvent(sequence, at_s, vm_uuid, vm_name, Happening.BLOCK_JOB, reason, detail, disk_job=job))

    def _add(self, event: VmEvent) -> VmEvent:
        self._last_sequence = event.sequence
        self._ring.append(event)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return event

    def after(self, sequence: int) -> list[VmEvent]:
        """List the held events with higher numbers."""
        return [event for event in self._ring if event.sequence > sequence]

    async def follow(self, after_sequence: int = 0) -> AsyncIterator[VmEvent]:
        """Yield events with higher numbers, for ever.

        A number that this run of the agent has not reached is of an earlier one: then all held events come.
        """
        if after_sequence > self._last_sequence:
            after_sequence = 0
        while True:
            changed = self._changed
            for event in self.after(after_sequence):
                after_sequence = event.sequence
                yield event
            await changed.wait()
