"""A save, restore or dump as it is shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID


class Kind(Enum):
    """What a job does."""

    SAVE = "save"
    RESTORE = "restore"
    DUMP = "dump"


class State(Enum):
    """Where a job stands; all but ACTIVE are final."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class VmJob:
    """One job.

    Attributes:
        step: what it does now: writing, checking, loading.
        total_bytes, processed_bytes: of this step; 0 while not known.
        started_at_s, ended_at_s: wall clock of the host.
        bandwidth_bytes_per_second: 0 for no bound.
        error: why it failed or was cancelled and what became of the guest; `reason` is the word for programs.
    """

    id: str
    kind: Kind
    vm_uuid: UUID
    vm_name: str
    path: Path
    started_at_s: float
    bandwidth_bytes_per_second: int = 0
    state: State = State.ACTIVE
    step: str = ""
    total_bytes: int = 0
    processed_bytes: int = 0
    ended_at_s: float | None = None
    error: str = ""
    reason: str = ""

    @property
    def remaining_bytes(self) -> int:
        """Bytes of this step that are to be done."""
        return max(self.total_bytes - self.processed_bytes, 0)
