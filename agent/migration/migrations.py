"""Every migration that this host has a half of: accepted, followed, steered, and taken up again after a restart."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar
from uuid import UUID

import structlog

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.begin import begin, context_of
from agent.migration.clocks import now_era, wall_s
from agent.migration.destination import DestinationSession
from agent.migration.machine import Cause
from agent.migration.offline import begin_offline, preparation, reserve_again
from agent.migration.operator_actions import AnySession, ask_destination, ask_source, may_come_halved, refusal, wait_over
from agent.migration.order import Begun, Endpoint, Offer, Role, Wish
from agent.migration.past import Past, PastMigrations, past_of
from agent.migration.record import Facts, Record, check_migration_id, incoming_record, outgoing_record, read_role
from agent.migration.remains import Remains, remains_of
from agent.migration.salvage import REASON as RECORD_BROKEN
from agent.migration.salvage import Held, cause_of, destination_record, find_half, hold, source_record
from agent.migration.shared_disks import find_strays, remove_markers
from agent.migration.source import SourceSession
from agent.migration.surroundings import Surroundings
from agent.vm.jobs import Job, JobLock
from agent.vm.vm import Vm
from common.errors import Busy, FerryError, InvalidRequest, NotFound, WrongState
from common.findings import Findings
from common.storage import StorageFailed
from common.tasks import OwnedTasks

KEPT_FINAL_COUNT: Final = 50
RESTORE_TIMEOUT_S: Final = 10.0

P = TypeVar("P")

_log = structlog.get_logger()


class Migrations:
    """The sessions of this host. Enter it with `async with`; entering takes up what was going on."""

    def __init__(self, around: Surroundings, tasks: OwnedTasks) -> None:
        self._around = around
        self._tasks = tasks
        self._sessions: dict[str, AnySession] = {}
        self._begun: dict[str, Begun] = {}
        self._epochs: dict[str, int] = {}
        self._made_now: set[str] = set()
        self._held: dict[str, str] = {}
        self._past = PastMigrations(around.store)

    def restore(self) -> None:
        """Take up every half on record; before any request is served."""
        for session_id in self._around.store.session_ids():
            try:
                body = self._around.store.find_session(session_id)
                if body is not None:
                    self._restore(body)
            except FerryError as error:
                _log.error("session record unusable", migration=session_id, error=error.text)
                self._salvage(session_id, error)
        self._sessions = dict(sorted(self._sessions.items(), key=lambda one: one[1].facts.began_at_s))
        self._remove_strays()

    def get(self, migration_id: str) -> AnySession:
        """Return a half.

        Raises:
            NotFound: this host has none of that id.
        """
        session = self._sessions.get(migration_id)
        if session is None:
            self._check_held(migration_id)
            raise NotFound(
                f"migration {migration_id[:80]} is unknown to {self._around.identity.name}",
                reason="MIGRATION_UNKNOWN",
                migration=migration_id[:80],
            )
        return session

    def get_source(self, migration_id: str) -> SourceSession:
        """Return the source's half.

        Raises:
            WrongState: this host is the destination.
        """
        session = self.get(migration_id)
        if not isinstance(session, SourceSession):
            raise WrongState(f"migration {migration_id}: this host is its destination, not its source", reason="WRONG_HALF")
        return session

    def get_destination(self, migration_id: str) -> DestinationSession:
        """Return the destination's half.

        Raises:
            WrongState: this host is the source.
        """
        session = self.get(migration_id)
        if not isinstance(session, DestinationSession):
            raise WrongState(f"migration {migration_id}: this host is its source, not its destination", reason="WRONG_HALF")
        return session

    def all(self) -> list[AnySession]:
        """Return every half, the newest first."""
        return list(reversed(self._sessions.values()))

    def statistics(self, vm: str) -> list[Past]:
        """Return the figures of a VM's migrations: those that run, then the last ones, the newest first.

        Of VMs that had the same name one after the other, only those of the one that moved last.
        """
        running = [past_of(one.facts, one.phase) for one in self.all() if not one.is_over]
        found = [*(past for past in running if vm in {past.vm_name, past.vm_uuid}), *self._past.of(vm)]
        return [past for past in found if past.vm_uuid == found[0].vm_uuid]

    def check_epoch(self, migration_id: str, epoch: int) -> None:
        """Refuse an older coordinator than one that has spoken before, and remember this one.

        Raises:
            InvalidRequest: below 1.
            WrongState: lower than seen before.
        """
        if epoch < 1:
            raise InvalidRequest(f"epoch {epoch}: at least 1 is wanted", reason="EPOCH_INVALID")
        session = self._sessions.get(migration_id)
        seen = self._epochs.get(migration_id, 0) if session is None else session.facts.epoch
        if epoch < seen:
            raise WrongState(
                f"migration {migration_id}: epoch {epoch} is older than {seen}: another coordinator has taken over",
                reason="EPOCH_STALE",
                epoch=epoch,
                seen=seen,
            )
        self._epochs[migration_id] = epoch
        if session is not None:
            session.attention.note()
        if session is not None and epoch > seen:
            session.update(epoch=epoch)
            session.keep()

    async def begin(self, wish: Wish) -> tuple[SourceSession, Begun]:
        """Take a running VM for a migration; the same id again gives the same answer."""
        self._check_new(wish.migration_id, wish.epoch, Role.SOURCE)
        if wish.migration_id in self._begun:
            return self.get_source(wish.migration_id), self._begun[wish.migration_id]
        with self._making(wish.migration_id):
            session, begun = await (begin_offline if wish.options.modes.offline else begin)(self._around, wish)
            try:
                self._add(session)
            except BaseException:
                if session.lock is not None:
                    session.lock.release()
                remove_markers(session.facts.made_files, self._around.store)
                raise
        self._begun[wish.migration_id] = begun
        return session, begun

    async def prepare(self, offer: Offer) -> tuple[DestinationSession, Endpoint]:
        """Make this host ready for a guest; on failure nothing is left of the attempt.

        Raises:
            FerryError: the guest cannot come here.
        """
        self._check_new(offer.migration_id, offer.epoch, Role.DESTINATION)
        known = self._sessions.get(offer.migration_id)
        if isinstance(known, DestinationSession) and known.endpoint is not None:
            return known, known.endpoint
        with self._making(offer.migration_id):
            prepared = preparation(self._around, offer)
            await prepared.check(Findings())
            session = prepared.session
            self._add(session)
            try:
                return session, await prepared.start()
            except BaseException as error:
                text = error.text if isinstance(error, FerryError) else "Prepare was broken off"
                reason = error.reason if isinstance(error, FerryError) else "PREPARE_BROKEN_OFF"
                session.observe(inc.AbandonRequested(Cause(text, reason)))
                async with asyncio.timeout(RESTORE_TIMEOUT_S):
                    while not session.is_over:
                        await session.wait_change()
                raise

    @contextmanager
    def _making(self, migration_id: str) -> Iterator[None]:
        """Hold the id of a half while it is made, since a repeat under another request id would make it twice.

        Raises:
            Busy: another request is making it.
            WrongState: an earlier run of the agent made it: keys and tokens are not written down, so it cannot be answered again.
        """
        if migration_id in self._made_now:
            raise Busy(f"migration {migration_id}: another request is just making this half of it", reason="MIGRATION_BEGINNING")
        if migration_id in self._sessions:
            raise WrongState(
                f"migration {migration_id}: the agent of {self._around.identity.name} was restarted since; cancel it and try again",
                reason="AGENT_RESTARTED",
            )
        self._made_now.add(migration_id)
        try:
            yield
        finally:
            self._made_now.remove(migration_id)

    def _check_new(self, migration_id: str, epoch: int, role: Role) -> None:
        check_migration_id(migration_id)
        self._check_held(migration_id)
        self.check_epoch(migration_id, epoch)
        session = self._sessions.get(migration_id)
        if session is None:
            return
        if session.facts.role is not role:
            raise WrongState(
                f"migration {migration_id}: this host is its {session.facts.role.value}; source and destination are one host",
                reason="SAME_HOST",
            )
        if session.is_final:
            raise WrongState(f"migration {migration_id} has ended; a new one needs a new id", reason="MIGRATION_ENDED")

    def _add(self, session: AnySession, *, after_restart: bool = False) -> None:
        if not after_restart:
            session.save()
        self._sessions[session.facts.migration_id] = session
        self._tasks.start(self._run(session, after_restart=after_restart))

    async def _run(self, session: AnySession, *, after_restart: bool) -> None:
        try:
            if after_restart and isinstance(session, SourceSession):
                await session.reattach()
            await session.run(after_restart=after_restart)
            self._forget_aside(session.facts.migration_id)
            remove_markers(session.facts.made_files, self._around.store)
            self._past.keep(past_of(session.facts, session.phase))
        except Exception:  # noqa: BLE001 - one migration's bug must not end the agent, which owns other guests
            _log.exception("session ended by a bug", migration=session.facts.migration_id)
        self._forget_old()
        if all(one.is_over for one in self._sessions.values()):
            gc.collect()  # calls leave cycles, 60 kB a move: removed now it holds no hand-over up

    def _remove_strays(self) -> None:
        awaited = {path for session in self.all() if not session.is_over for path in session.facts.made_files}
        try:
            strays = find_strays(self._around.store, awaited)
        except FerryError as error:
            _log.error("marker record unusable", error=error.text)
            return
        self._tasks.start(asyncio.to_thread(remove_markers, strays, self._around.store))  # storage that is away holds it up

    def _restore(self, body: dict[str, object]) -> None:
        session = self._rebuild(body)
        self._sessions[session.facts.migration_id] = session
        if session.facts.ended_at_s is not None:
            session.mark_over()
            return
        self._add(session, after_restart=True)
        _log.info("migration taken up again", migration=session.facts.migration_id, phase=type(session.phase).__name__)
        if isinstance(session, DestinationSession) and isinstance(session.phase, inc.Reserved):
            session.observe(inc.AbandonRequested(Cause("the agent was restarted while it prepared; try again", "AGENT_RESTARTED")))

    def _salvage(self, session_id: str, error: FerryError) -> None:
        """Go on with a half whose record cannot be read; the VM that it is about, or may be about, stays taken meanwhile."""
        remains = remains_of(self._around.store.session_content(session_id))
        self._held[session_id] = f"{error.text}; its VM is held until its QEMU has answered"
        try:
            holds = hold(self._around.vms, session_id, remains)
        except FerryError as busy:
            self._held[session_id] = f"{error.text}; {busy.text}"
            return
        self._tasks.start(self._go_on(session_id, remains, holds, error))

    async def _go_on(self, session_id: str, remains: Remains, holds: Sequence[Held], error: FerryError) -> None:
        try:
            found = await find_half(remains, holds)
            if found is None:
                _log.error("session record is about no guest that is here", migration=session_id)
                del self._held[session_id]
                return
            cause = cause_of(found.role, self._around.identity.name, self._around.store.session_path(session_id), error)
            facts = remains.facts_of(session_id, found.role, found.vm_uuid, found.vm_name, wall_s())
            vm, lock, parent = found.vm, found.lock, context_of(facts.traceparent)
            session: AnySession
            if found.role is Role.SOURCE:
                sent = source_record(remains, facts, found.seen, cause)
                session = SourceSession(sent, around=self._around, vm=vm, lock=lock, parent=parent)
            else:
                taken = destination_record(remains, facts, found.seen, cause)
                session = DestinationSession(taken, around=self._around, vm=vm, lock=lock, parent=parent)
            try:
                self._around.store.set_session_aside(session_id)
            except FerryError as failure:
                _log.warning("unreadable record not kept", migration=session_id, error=failure.text)
            session.keep()
            del self._held[session_id]
            if remains.is_over:
                self._sessions[session_id] = session
                session.mark_over()
                self._forget_aside(session_id)
                return
            self._add(session, after_restart=True)
            _log.warning("migration goes on by what is left", migration=session_id, phase=type(session.phase).__name__)
        except Exception:  # noqa: BLE001 - one migration's bug must not end the agent, which owns other guests
            _log.exception("record not salvaged", migration=session_id)

    def _check_held(self, migration_id: str) -> None:
        if migration_id in self._held:
            raise WrongState(
                f"migration {migration_id}: its record on {self._around.identity.name} cannot be read: {self._held[migration_id]}",
                reason=RECORD_BROKEN,
                migration=migration_id,
            )

    def _forget_aside(self, migration_id: str) -> None:
        try:
            self._around.store.forget_session_aside(migration_id)
        except FerryError as failure:
            _log.warning("unreadable record not removed", migration=migration_id, error=failure.text)

    def _rebuild(self, body: dict[str, object]) -> AnySession:
        if read_role(body) is Role.SOURCE:
            sent = _on_our_clock(outgoing_record(body))
            vm, lock = self._take_again(sent.facts, Job.MIGRATION_OUT)
            return SourceSession(sent, around=self._around, vm=vm, lock=lock, parent=context_of(sent.facts.traceparent))
        taken = _on_our_clock(incoming_record(body))
        reserve_again(self._around, taken.facts)
        vm, lock = self._take_again(taken.facts, Job.MIGRATION_IN)
        return DestinationSession(taken, around=self._around, vm=vm, lock=lock, parent=context_of(taken.facts.traceparent))

    def _take_again(self, facts: Facts, job: Job) -> tuple[Vm | None, JobLock | None]:
        try:
            vm = self._around.vms.find(UUID(facts.vm_uuid))
        except ValueError as error:
            raise InvalidRequest(f"session record: {facts.vm_uuid!r} is no UUID", reason="RECORD_MALFORMED") from error
        if facts.ended_at_s is not None:
            return vm, None
        if vm is None and (unread := self._around.vms.find_unreadable(facts.vm_uuid)) is not None:
            raise unread.refusal()
        if vm is None:
            return None, None
        return vm, self._around.vms.lock(vm, job, facts.migration_id)

    def _forget_old(self) -> None:
        final = [session for session in self.all() if session.is_over]
        for session in final[KEPT_FINAL_COUNT:]:
            migration_id = session.facts.migration_id
            del self._sessions[migration_id]
            self._begun.pop(migration_id, None)
            self._epochs.pop(migration_id, None)
            try:
                self._around.store.remove_session(migration_id)
            except StorageFailed as failure:
                _log.warning("migration not forgotten", migration=migration_id, error=failure.text)

    async def cancel(self, migration_id: str, cause: Cause) -> SourceSession:
        """Keep the guest at the source; asks, does not wait. Cancelling what is kept already is fine.

        Raises:
            WrongState: the guest was sent; the text says where it is.
        """
        session = self.get_source(migration_id)
        if isinstance(session.phase, out.Kept | out.Lost):
            return session
        ask_source(session, out.CancelRequested(cause), f"cannot be cancelled: {session.too_late}", "GUEST_SENT")
        return session

    async def pause(self, migration_id: str) -> SourceSession:
        """Stop the guest's vCPUs for the rest of the transfer; it runs again after the hand-over.

        Raises:
            WrongState: the switch-over has begun, or the guest is gone.
        """
        session = self.get_source(migration_id)
        session.pause()
        return session

    async def unpause(self, migration_id: str) -> SourceSession:
        """Let vCPUs that were stopped for the transfer go on.

        Raises:
            WrongState: they were not, or the switch-over has begun, or the guest is gone.
        """
        session = self.get_source(migration_id)
        session.unpause()
        return session

    async def abandon(self, migration_id: str, cause: Cause, *, source_has_ended: bool = False) -> DestinationSession:
        """Undo Prepare, and wait until it is; undoing what is undone already is fine.

        Raises:
            WrongState: the guest may have run here.
        """
        session = self.get_destination(migration_id)
        session.heed_guardian()
        if not isinstance(session.phase, inc.Abandoned | inc.Lost):
            event = inc.AbandonRequested(cause, source_has_ended, may_come_halved=may_come_halved(session))
            if isinstance(session.phase, inc.Listening | inc.Loading):
                why = (
                    "the guest may be coming by post-copy; it is abandoned once the source has ended its half",
                    "GUEST_MAY_BE_HERE",
                )
            else:
                why = f"not possible any more, the guest runs on {self._around.identity.name}", "GUEST_RAN_HERE"
            ask_destination(session, event, f"cannot be abandoned: {why[0]}", why[1])
        await wait_over(session)  # also where it was undone by itself: what it made may still be being removed
        return session

    async def abandon_for_source(self, migration_id: str, token: bytes) -> None:
        """Undo Prepare on the word of the source's agent, which keeps the guest, and wait until it is.

        Raises:
            InvalidRequest: the token is not the one whose digest Prepare was given.
            WrongState: the guest may have run here.
        """
        session = self.get_destination(migration_id)
        session.check_token(token)
        if isinstance(session.phase, inc.Entering | inc.Filling):
            raise refusal(session, "cannot be abandoned: the guest may have run here", "GUEST_RAN_HERE")
        await self.abandon(migration_id, Cause("the guest stays at the source", "ABANDONED"), source_has_ended=True)

    async def confirm(self, migration_id: str, lost: out.DestinationLost | None = None) -> SourceSession:
        """End the source's QEMU, now that the guest is kept, or `lost`, at the destination; waits until it is gone.

        Raises:
            WrongState: the guest is still here.
        """
        session = self.get_source(migration_id)
        if not isinstance(session.phase, out.Retiring | out.Retired | out.Losing | out.Lost):
            ask_source(session, lost or out.ConfirmRequested(), "cannot be confirmed: the guest was not sent", "GUEST_NOT_SENT")
        await wait_over(session)
        return session


def _on_our_clock(record: Record[P]) -> Record[P]:
    """Let instants on record be compared with those of now."""
    return replace(record, facts=record.facts.in_era(now_era())) if record.facts.ended_at_s is None else record
