"""The figures of ended migrations, kept for each VM after its migrations are forgotten and, at the source, after it is gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from agent.migration.convergence import Decision
from agent.migration.order import Role
from agent.migration.progress import Progress, Timeline
from agent.migration.record import Facts, find_cause
from common.codec import Unknown, decode, encode_fields
from common.errors import FerryError
from common.storage import StorageFailed

if TYPE_CHECKING:
    from agent.migration import incoming, outgoing
    from agent.store import Store

KEPT_COUNT: Final = 20
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Past:
    """One half of a migration, as far as statistics go.

    Attributes:
        peer: name of the other host.
        phase: our last one, or the present one of a half that has not ended.
        error, reason: why it did not succeed; empty otherwise.
        ended_at_s: None while it runs.
        decisions: at the source, what the convergence engine decided.
    """

    migration_id: str
    role: Role
    vm_uuid: str
    vm_name: str
    peer: str
    phase: str
    error: str
    reason: str
    began_at_s: float
    ended_at_s: float | None
    timeline: Timeline
    progress: Progress | None
    decisions: tuple[Decision, ...]
    unknown: Unknown = field(default_factory=Unknown, compare=False)


@dataclass(frozen=True, slots=True)
class _Record:
    """What is written for one VM, the newest first."""

    migrations: tuple[Past, ...] = ()
    unknown: Unknown = field(default_factory=Unknown, compare=False)


def past_of(facts: Facts, phase: incoming.Phase | outgoing.Phase) -> Past:
    """Take what counts of a half."""
    cause = find_cause(phase)
    return Past(
        migration_id=facts.migration_id,
        role=facts.role,
        vm_uuid=facts.vm_uuid,
        vm_name=facts.vm_name,
        peer=facts.peer,
        phase=type(phase).__name__,
        error="" if cause is None else cause.text,
        reason="" if cause is None else cause.reason,
        began_at_s=facts.began_at_s,
        ended_at_s=facts.ended_at_s,
        timeline=facts.timeline,
        progress=facts.progress,
        decisions=facts.decisions,
    )


class PastMigrations:
    """The last migrations of each VM."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, past: Past) -> None:
        """Keep an ended half, in place of the oldest one of its VM if there are too many; a disk that is full costs only this."""
        uuid = UUID(past.vm_uuid)
        others = (one for one in self._read(uuid) if one.migration_id != past.migration_id)
        record = encode_fields(_Record((past, *others)[:KEPT_COUNT]))
        try:
            self._store.save_statistics(uuid, record)
        except StorageFailed as error:
            _log.warning("statistics not kept", migration=past.migration_id, error=error.text)

    def of(self, vm: str) -> tuple[Past, ...]:
        """Return what is kept of a VM, by its UUID or the name that it had, the newest first."""
        found = [past for uuid in self._store.statistics_uuids() for past in self._read(uuid) if vm in {past.vm_name, past.vm_uuid}]
        return tuple(sorted(found, key=lambda past: -past.began_at_s))

    def _read(self, uuid: UUID) -> tuple[Past, ...]:
        try:
            body = self._store.find_statistics(uuid)
            return () if body is None else decode(_Record, body).migrations
        except FerryError as error:  # of another version of Ferry
            _log.warning("statistics unusable", vm=str(uuid), error=error.text)
            return ()
