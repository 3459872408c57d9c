"""A guardian for each half of a move, for as long as there is one; it is told what it guards, and that the agent is there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from agent.guardian.charge import Charge
from agent.guardian.note import Note, find_note
from agent.migration import incoming as inc
from agent.migration import outgoing as out
from common.errors import FerryError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.guardian.life import Guardian
    from agent.migration.destination import DestinationSession
    from agent.migration.record import Facts
    from agent.migration.source import SourceSession
    from agent.migration.surroundings import Surroundings
    from agent.qemu.commands import Qemu

BEAT_INTERVAL_S: Final = 0.2
# Where a guest is that QEMU may hold in front of its switch-over, or may have sent.
_GUARDED_HERE = (
    out.Connecting,
    out.Transferring,
    out.Leaving,
    out.Settling,
    out.Switching,
    out.Crossing,
    out.Following,
    out.Broken,
    out.Sent,
    out.Cancelling,
)
# Where a guest may have come that nobody has let go on.
_GUARDED_THERE = (inc.Listening, inc.Loading, inc.Loaded, inc.Resuming)
_log = structlog.get_logger()


class Guarded(Protocol):
    """A half of a move, as what guards it sees it."""

    @property
    def facts(self) -> Facts:
        """What is remembered of it."""

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""

    @property
    def qemu(self) -> Qemu:
        """The commands of its QEMU."""


class Guarding:
    """The guardian of one half of a move; `charge` says what it guards now, None while that is nothing."""

    def __init__(self, session: Guarded, around: Surroundings, charge: Callable[[], Charge | None]) -> None:
        self._session = session
        self._around = around
        self._charge = charge
        self._guardian: Guardian | None = None
        self._told: Charge | None = None
        self._passed: socket.socket | None = None
        self._was_cut_off = False

    async def run(self) -> None:
        """Have a guardian until cancelled; without one the move is not worse off than the guest's agent."""
        try:
            self._guardian = self._around.guardians.start()
        except OSError as error:
            _log.warning("no guardian", migration=self._session.facts.migration_id, error=str(error))
            return
        try:
            while True:
                self.tell()
                self._guardian.beat()
                await asyncio.sleep(BEAT_INTERVAL_S)
        finally:
            guardian, self._guardian = self._guardian, None
            if self._session.is_final:
                guardian.end()
            else:  # this agent is being stopped
                guardian.leave()

    @property
    def was_cut_off(self) -> bool:
        """Whether this agent has lost a connection to QEMU, as it does to its guardian."""
        return self._was_cut_off or (self._passed is not None and self._connection() is not self._passed)

    def find_note(self) -> Note | None:
        """Read what the guardian of an agent that was away has done; None when it was nothing.

        Raises:
            BrokenRecord: it cannot be read.
        """
        return find_note(self._around.store.claim_path(self._session.facts.migration_id))

    def remove_note(self) -> None:
        """Forget it: what it told is in the record."""
        self._around.store.claim_path(self._session.facts.migration_id).unlink(missing_ok=True)

    def tell(self) -> None:
        """Tell it what has changed; before QEMU is told anything that the guardian has to know of."""
        if self._guardian is None:
            return
        try:
            charge, connection = self._charge(), self._connection()
        except FerryError:  # no QEMU yet, or any more
            return
        if charge is None or (charge == self._told and connection is self._passed):
            return
        self._was_cut_off = self.was_cut_off
        self._guardian.tell(charge, connection)
        self._told, self._passed = charge, connection

    def _connection(self) -> socket.socket | None:
        try:
            return self._session.qemu.monitor.peer
        except FerryError:
            return None


def outgoing_charge(session: SourceSession, around: Surroundings) -> Charge:
    """Say what is guarded at the source.

    Raises:
        FerryError: there is no QEMU.
    """
    facts, process = session.facts, session.process
    return Charge(
        migration_id=facts.migration_id,
        qmp_path=str(session.qemu.monitor.path),
        pid=process.pid,
        start_time_ticks=process.start_time_ticks,
        max_downtime_s=facts.options.max_downtime_s,
        may_stand_still=facts.options.pause or facts.guest_was_paused,
        is_under_way=facts.timeline.started_at_s is not None and isinstance(session.phase, _GUARDED_HERE),
        peer_address=facts.peer_address,
        note_path=str(around.store.claim_path(facts.migration_id)),
        token=facts.token,
        keep_paused=facts.stays_paused,
        certificates=around.guardians.certificates,
    )


def incoming_charge(session: DestinationSession, around: Surroundings) -> Charge | None:
    """Say what is guarded at the destination; None before the source's agent is known.

    Raises:
        FerryError: there is no QEMU.
    """
    facts, process = session.facts, session.process
    if not session.source_address:
        return None
    return Charge(
        migration_id=facts.migration_id,
        qmp_path=str(session.qemu.monitor.path),
        pid=process.pid,
        start_time_ticks=process.start_time_ticks,
        max_downtime_s=facts.options.max_downtime_s,
        may_stand_still=False,
        is_under_way=isinstance(session.phase, _GUARDED_THERE),
        peer_address=session.source_address,
        token_sha256=facts.token_sha256,
        certificates=around.guardians.certificates,
        note_path=str(around.store.claim_path(facts.migration_id)),
        has_exports=bool(facts.copies),
    )
