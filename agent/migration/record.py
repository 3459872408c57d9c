"""What an agent remembers of one half of a migration, so that it can go on after a restart.

One record a half, written whole at every change of phase; see `agent.store`. It holds the token of the hand-over, so it is
readable by the agent alone; it never holds the PSK key or the tunnel's token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from agent.blockjobs.images import MadeFile
from agent.migration import incoming, outgoing
from agent.migration.arrival import Arrival
from agent.migration.convergence import GIVEN_UP, Decision
from agent.migration.machine import Cause
from agent.migration.order import DiskCopy, Options, Role, Transport
from agent.migration.progress import Era, Progress, Timeline
from agent.qemu.endings import STOP_REASONS
from agent.vm.stored import Stored
from common.codec import Unknown, decode, encode, encode_fields
from common.errors import InvalidRequest

P = TypeVar("P")

_MIGRATION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_PHASES: Final = {
    Role.SOURCE: {cls.__name__: cls for cls in outgoing.Phase.__args__},
    Role.DESTINATION: {cls.__name__: cls for cls in incoming.Phase.__args__},
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What both halves remember beside their phase.

    Attributes:
        began_at_s, ended_at_s: wall clock of this host, to be shown.
        era: what the instants of `timeline` and `broken_since_s` count from.
        token: the source's token, hexadecimal; empty at the destination.
        token_sha256: its SHA-256, hexadecimal.
        peer: name of the other host, as far as it is known.
        peer_address, peer_uri: at the source, the destination's agent and QEMU; empty before Perform.
        peer_words: at the source, why the destination failed, in its own words.
        guest_was_paused: whether the guest's user had stopped it before the migration.
        guest_ran: whether the guest has run at the destination.
        traceparent: W3C trace context of the request that began this half.
        decisions: at the source, what the convergence engine decided.
        made_files: what this half has to remove at its end.
        copies: disks that are copied.
        made_images: at the destination, images that it made, to be removed unless the guest comes.
        is_kept_there: at the source, whether the destination keeps the definition of the VM when its guest ends.
        opened_uri: at the source, what `migrate` is going to be told, once the way is open while disks are copied.
        post_copy_cause: at the source, why post-copy began.
        broken_since_s: at the source, since when the connection of post-copy is lost; None while it is not.
        is_fragile: at the destination, whether its QEMU dies when the connection is lost while it recovers.
        arrival: what became of the guest at the destination, each half what it knows of it.
        stored: at the destination, what it is going to keep of the VM while it does not run; None of a transient one.
    """

    migration_id: str
    role: Role
    vm_uuid: str
    vm_name: str
    options: Options
    epoch: int
    began_at_s: float
    era: Era = field(default_factory=Era)
    token: str = ""
    token_sha256: str = ""
    peer: str = ""
    peer_address: str = ""
    peer_uri: str = ""
    peer_words: str = ""
    guest_was_paused: bool = False
    guest_ran: bool = False
    traceparent: str = ""
    warnings: tuple[str, ...] = ()
    made_files: tuple[str, ...] = ()
    ended_at_s: float | None = None
    waiting_for: str = ""
    timeline: Timeline = field(default_factory=Timeline)
    progress: Progress | None = None
    post_copy_cause: str = ""
    broken_since_s: float | None = None
    is_fragile: bool = False
    decisions: tuple[Decision, ...] = ()
    arrival: Arrival = field(default_factory=Arrival)
    stored: Stored | None = None
    copies: tuple[DiskCopy, ...] = ()
    made_images: tuple[MadeFile, ...] = ()
    opened_uri: str = ""
    is_kept_there: bool = False
    unknown: Unknown = field(default_factory=Unknown, compare=False)

    def in_era(self, now: Era) -> Facts:
        """Return the same with instants that can be compared with those of now."""
        by_s = self.era.shift_s(now)
        since_s = None if self.broken_since_s is None else self.broken_since_s + by_s
        return replace(self, era=now, timeline=self.timeline.shifted(by_s), broken_since_s=since_s)

    @property
    def stays_paused(self) -> bool:
        """Whether the guest is not to run at the destination before its user says so."""
        return self.guest_was_paused or self.options.modes.suspend or self.options.modes.offline


@dataclass(frozen=True)
class Record(Generic[P]):
    """One half of a migration."""

    facts: Facts
    phase: P

    def to_json(self) -> dict[str, object]:
        """Return what `outgoing_record` or `incoming_record` reads back."""
        return {
            "head": encode(head_of(self.facts, self.phase)),
            "phase": {"name": type(self.phase).__name__, "fields": encode_fields(self.phase)},
            "facts": encode(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a record: what its migration is about, readable where the rest is not.

    Attributes:
        phase: its name.
        is_over: whether nothing of the half is left to do.
        has_copies: whether disks are copied.
    """

    role: Role
    vm_uuid: str
    vm_name: str
    epoch: int
    phase: str
    is_over: bool
    guest_was_paused: bool
    stays_paused: bool
    has_copies: bool
    token: str
    token_sha256: str
    peer: str
    peer_address: str
    peer_uri: str
    transport: Transport
    plain: bool
    unknown: Unknown = field(default_factory=Unknown, compare=False)


def head_of(facts: Facts, phase: object) -> Head:
    """Return what a record of a half begins with."""
    return Head(
        role=facts.role,
        vm_uuid=facts.vm_uuid,
        vm_name=facts.vm_name,
        epoch=facts.epoch,
        phase=type(phase).__name__,
        is_over=facts.ended_at_s is not None,
        guest_was_paused=facts.guest_was_paused,
        stays_paused=facts.stays_paused,
        has_copies=bool(facts.copies),
        token=facts.token,
        token_sha256=facts.token_sha256,
        peer=facts.peer,
        peer_address=facts.peer_address,
        peer_uri=facts.peer_uri,
        transport=facts.options.transport,
        plain=facts.options.plain,
    )


def read_role(body: dict[str, object]) -> Role:
    """Say which half a stored record is of."""
    return decode(Facts, body.get("facts")).role


def outgoing_record(body: dict[str, object]) -> Record[outgoing.Phase]:
    """Read the source's half back."""
    return Record(decode(Facts, body.get("facts")), read_source_phase(body.get("phase")))


def incoming_record(body: dict[str, object]) -> Record[incoming.Phase]:
    """Read the destination's half back."""
    return Record(decode(Facts, body.get("facts")), read_destination_phase(body.get("phase")))


def read_source_phase(value: object) -> outgoing.Phase:
    """Read a phase of the source back.

    Raises:
        InvalidRequest: it is none that this version knows.
    """
    phase: outgoing.Phase = _phase(Role.SOURCE, value)
    return phase


def read_destination_phase(value: object) -> incoming.Phase:
    """Read a phase of the destination back.

    Raises:
        InvalidRequest: it is none that this version knows.
    """
    phase: incoming.Phase = _phase(Role.DESTINATION, value)
    return phase


def _phase(role: Role, value: object):  # type: ignore[no-untyped-def]  # noqa: ANN202 - the name decides the type
    match value:
        case {"name": str(name), "fields": dict(fields)} if name in _PHASES[role]:
            return decode(_PHASES[role][name], fields)
    raise InvalidRequest(f"session record: {value!r} is not a phase of a {role.value}", reason="RECORD_MALFORMED")


def check_migration_id(text: str) -> None:
    """Refuse what cannot be the id of a migration.

    Raises:
        InvalidRequest: anything but 1 to 64 letters, digits and dashes.
    """
    if not _MIGRATION_ID.fullmatch(text):
        raise InvalidRequest(
            f"migration id {text[:80]!r}: 1 to 64 letters, digits and dashes are wanted, not beginning with a dash",
            reason="MIGRATION_ID_INVALID",
        )


def find_cause(phase: incoming.Phase | outgoing.Phase) -> Cause | None:
    """Return why a migration does not go on, if its phase says so."""
    cause = getattr(phase, "cause", None)
    return cause if isinstance(cause, Cause) else None


def tells_all(cause: Cause) -> bool:
    """Say whether the other host has nothing to add to a cause: what it saw only followed from it."""
    return cause.by_wish or cause.reason in GIVEN_UP or cause.reason in STOP_REASONS
