"""One half of a migration as its agent tells it, and a whole migration as the coordinator tells it. Pure.

Wishes and numbers that the coordinator only passes on stay as they came: serialised messages of ferry.common.v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class HalfState(Enum):
    """How far one half is; the values are those of ferry.agent.v1.Migration.State."""

    UNSPECIFIED = 0
    PREPARING = 1
    TRANSFERRING = 2
    SWITCHING = 3
    HANDING_OVER = 4
    HANDED_OVER = 5
    CANCELLING = 6
    SUCCEEDED = 7
    FAILED = 8
    CANCELLED = 9
    POST_COPY = 10


class Location(Enum):
    """Where the guest is; the values are those of the protocols' GuestLocation. ENDED_THERE: only of a whole migration."""

    UNKNOWN = 0
    SOURCE = 1
    DESTINATION = 2
    SWITCHING = 3
    NOWHERE = 4
    ENDED_THERE = 5


@dataclass(frozen=True, slots=True)
class Advice:
    """A command that works on a half as it is, as its agent tells it.

    Attributes:
        verb: of `ferry migration`.
        condition: when it is right, in words.
    """

    verb: str
    is_forced: bool
    condition: str


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a migration.

    Attributes:
        options, progress, downtime: serialised, empty when there is none.
        resume_token: only at the source, only once its QEMU has completed. Never stored.
        waiting_for: what this half waits for; empty when nothing.
        epoch: the highest that its agent has seen.
        advice: what an operator may do about it.
        is_definition_kept: at a destination that has lost the guest, whether it stored the VM.
        peer: name of the other host, as far as its agent knows it.
        began_at_s: when it began, by its host's wall clock.
        unattended_s: for how long nobody but the other agent has asked about it.
    """

    state: HalfState
    phase: str
    status: str
    location: Location
    is_final: bool
    error: str
    error_reason: str
    vm_name: str
    vm_uuid: str
    guest_ran: bool
    waiting_for: str
    resume_token: bytes
    keep_paused: bool
    options: bytes
    progress: bytes
    downtime: bytes
    phases: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...]
    epoch: int = 0
    advice: tuple[Advice, ...] = ()
    is_definition_kept: bool = False
    migration_id: str = ""
    is_source: bool = False
    peer: str = ""
    began_at_s: float = 0.0
    unattended_s: float = 0.0

    def __repr__(self) -> str:
        """Show no token."""
        return f"Half({self.phase}, {self.location.name}, error={self.error!r})"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client changes of a running migration; None keeps what there is.

    Attributes:
        bandwidth_bytes_per_second, disk_bandwidth_bytes_per_second, max_duration_s: 0 is without a bound.
    """

    bandwidth_bytes_per_second: int | None = None
    max_downtime_s: float | None = None
    max_duration_s: float | None = None
    disk_bandwidth_bytes_per_second: int | None = None


class MoveState(Enum):
    """How far a whole migration is; the values are those of ferry.coordinator.v1.Migration.State."""

    PREPARING = 1
    TRANSFERRING = 2
    SWITCHING = 3
    FINISHING = 4
    CANCELLING = 5
    WAITING = 6
    SUCCEEDED = 7
    FAILED = 8
    CANCELLED = 9
    POST_COPY = 10

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in {MoveState.SUCCEEDED, MoveState.FAILED, MoveState.CANCELLED}


@dataclass(frozen=True, slots=True)
class Move:
    """A migration of one VM from one host to another.

    Attributes:
        options: serialised wishes.
        forecast: what a plan said, serialised; empty without one.
        request_id: of the request that started it; empty when it had none.
        source_phase, status: the source's phase and its QEMU's status.
        cancel_wanted: somebody asked for a cancel.
        is_tidy: nothing is left to undo on either host.
        started_by: role and name of the certificate of who started it; empty where that is not known.
    """

    migration_id: str
    vm_name: str
    source: str
    destination: str
    options: bytes
    traceparent: str
    epoch: int
    created_at_s: float
    request_id: str = ""
    vm_uuid: str = ""
    state: MoveState = MoveState.PREPARING
    location: Location = Location.SOURCE
    step: str = ""
    source_phase: str = ""
    status: str = ""
    error: str = ""
    error_reason: str = ""
    progress: bytes = b""
    downtime: bytes = b""
    phases: tuple[tuple[str, float], ...] = ()
    warnings: tuple[str, ...] = ()
    ended_at_s: float | None = None
    cancel_wanted: bool = False
    is_tidy: bool = False
    forecast: bytes = b""
    started_by: str = ""

    @property
    def trace_id(self) -> str:
        """W3C trace id, 32 hexadecimal digits; empty when there is no trace."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) > 1 else ""
