"""Everything that may happen to the source's half while it moves: QEMU's events, silence, clocks, the other host's word."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from agent.migration import outgoing as out
from agent.migration.clocks import now_s
from agent.migration.guest_watch import GuestWatch
from agent.migration.machine import Cause
from agent.migration.post_copy import When
from agent.migration.progress import Progress, progress_of
from agent.migration.transfer_spans import untraced
from agent.qemu.endings import GUEST_ENDS, of_exit, of_status
from agent.qemu.status import MigrationReport, MigrationStatus, RunState, migration_status_of
from agent.qemu.subscription import Event, Gone, Reconnected, Subscription
from agent.qemu.threads import find_threads, is_working
from common.errors import Bug, FerryError, Unreachable

if TYPE_CHECKING:
    from agent.migration.source import SourceSession

POLL_INTERVAL_S: Final = 0.5
MUTE_LIMIT_S: Final = 1.0
LOOK_INTERVAL_S: Final = 0.1
STANDSTILL_MARGIN_S: Final = 1.0
CUT_OFF_ANSWER_S: Final = 0.2
CONNECT_LIMIT_S: Final = 15.0
STALL_LIMIT_S: Final = 30.0
POST_COPY_STALL_LIMIT_S: Final = 10.0
WATCH_RETRY_S: Final = 0.5

_IN_POST_COPY = (out.Following, out.Broken)
_BEFORE_SENT = (
    out.Begun,
    out.Mirroring,
    out.Connecting,
    out.Transferring,
    out.Settling,
    out.Switching,
    out.Leaving,
    out.Crossing,
    *_IN_POST_COPY,
    out.Refused,
    out.Cancelling,
)
_ON_THE_WAY = (out.Connecting, out.Transferring, out.Leaving, out.Settling)
_SWITCHING = (out.Switching, out.Crossing)
_RUN_STATES_OF_SENT = (RunState.POSTMIGRATE, RunState.FINISH_MIGRATE)
_log = structlog.get_logger()


class SourceWatch:
    """The eyes and ears of one source session."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._guest = GuestWatch(session)
        self._was_watched = True
        self._was_away = False
        self._shutdown_reason = ""
        self.destination_is_over = False

    async def run(self, *, after_restart: bool) -> None:
        """Watch until cancelled."""
        self._was_away = after_restart
        if isinstance(self._session.phase, (out.Crossing, *_IN_POST_COPY)):
            self._session.hold_vm()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_qemu(after_restart=after_restart))
            group.create_task(self._poll_progress())
            group.create_task(self._watch_mute())
            group.create_task(self._watch_standstill())
            group.create_task(self._watch_connect())
            group.create_task(self._watch_destination())
            group.create_task(self._session.steering.run())
            group.create_task(self._session.heartbeat.run())
            group.create_task(self._guest.run())
            group.create_task(self._session.disks.watch(after_restart=after_restart))

    # what QEMU says

    async def _follow_qemu(self, *, after_restart: bool) -> None:
        monitor = await self._session.wait_attached()
        if after_restart:
            self._heed_guardian()
        if monitor is None:  # it ended while no agent was watching
            self._was_watched = False
            self._see_exit()
            return
        with monitor.subscribe() as notices:
            if after_restart:
                await self._reattach()
            await self._read(notices)

    async def _read(self, notices: Subscription) -> None:
        async for notice in notices:
            match notice:
                case Event() if migration_status_of(notice) is MigrationStatus.FAILED:
                    await self._see_failure()
                case Event():
                    self._see_event(notice)
                    self._guest.see(notice)
                case Reconnected():
                    self._was_watched = False
                    self._heed_guardian()
                    await self.ask_qemu()
                    self._guest.suspect_stop()
                    self._was_watched = True
                case Gone():
                    self._heed_guardian()
                    self._see_exit()

    def _heed_guardian(self) -> None:
        """Learn that the guardian has given the guest away while this agent was away, which QEMU may not live to say again."""
        session = self._session
        note = session.guarding.find_note()
        if note is None or not isinstance(session.phase, (*_ON_THE_WAY, *_SWITCHING, out.Cancelling)):
            return
        if note.status == MigrationStatus.COMPLETED.value:
            session.observe(out.QemuCompleted(), timeline=replace(session.facts.timeline, completed_at_s=note.at_s))
        else:
            self._see_post_copy(note.at_s)

    async def _see_failure(self) -> None:
        """Ask why it failed, which the event does not tell."""
        session = self._session
        session.status_text = MigrationStatus.FAILED.value
        why = ""
        with suppress(FerryError):
            why = (await session.qemu.query_migrate()).error_desc or ""
        session.observe(out.QemuGaveUp(self._gave_up(MigrationStatus.FAILED, why)))

    def _see_event(self, event: Event) -> None:
        session = self._session
        match event.name:
            case "MIGRATION":
                status = migration_status_of(event)
                if status is MigrationStatus.CANCELLED:
                    session.status_text = status.value
                    session.observe(out.QemuGaveUp(self._gave_up(status, "")))
                elif status is not None:
                    self._see_status(status, event.at_s)
            case "MIGRATION_PASS":
                self._see_pass(event)
            case "STOP" if isinstance(session.phase, _ON_THE_WAY):
                session.update(timeline=replace(session.facts.timeline, stopped_at_s=event.at_s))
            case "RESUME" if not isinstance(session.phase, (out.Sent, out.HandedOver, *_IN_POST_COPY)):
                session.update(timeline=replace(session.facts.timeline, stopped_at_s=None))
            case "SHUTDOWN":
                self._shutdown_reason = str(event.data.get("reason", ""))

    def _see_pass(self, event: Event) -> None:
        """Take a pass as QEMU tells it from the first on; 11.1 does not tell of that one, and its other events are of no passes."""
        session = self._session
        passes, progress, is_first = session.facts.timeline.pass_at_s, session.facts.progress, event.data.get("pass") == 1
        if is_first or (passes and not (progress and progress.pass_goal_pages)):
            session.update(timeline=replace(session.facts.timeline, pass_at_s=(*passes, event.at_s)))
            self._start_wished_post_copy(When.AFTER_FIRST_PASS, is_due=not is_first)

    def _note_pass(self, progress: Progress) -> None:
        """Take a pass that QEMU does not tell of."""
        session = self._session
        line = session.facts.timeline
        passes = line.pass_at_s or (() if line.started_at_s is None else (line.started_at_s,))
        if len(passes) < progress.pass_count:
            session.update(timeline=replace(line, pass_at_s=(*passes, now_s())))

    def _see_status(self, status: MigrationStatus, at_s: float) -> None:
        session = self._session
        session.status_text = status.value
        match status:
            case MigrationStatus.ACTIVE:
                session.observe(out.QemuActive())
                self._start_wished_post_copy(When.IMMEDIATELY, is_due=True)
            case MigrationStatus.POSTCOPY_ACTIVE:
                self._see_post_copy(at_s)
            case MigrationStatus.POSTCOPY_PAUSED:
                self._see_link_lost(at_s)
            case MigrationStatus.PRE_SWITCHOVER:
                if session.facts.timeline.stopped_at_s is None:
                    session.update(timeline=replace(session.facts.timeline, stopped_at_s=at_s))
                session.heartbeat.tell(out.QemuAtSwitchover(has_mirrors=session.disks.are_wanted))
            case MigrationStatus.COMPLETED:
                session.observe(out.QemuCompleted(), timeline=replace(session.facts.timeline, completed_at_s=at_s))
            case _:
                session.update()

    def _start_wished_post_copy(self, when: When, *, is_due: bool) -> None:
        session = self._session
        if is_due and session.facts.options.post_copy.when is when and isinstance(session.phase, out.Transferring):
            session.start_postcopy(f"as wished: {when.value}")

    def _see_post_copy(self, at_s: float) -> None:
        session = self._session
        session.hold_vm()
        if session.facts.timeline.post_copy_at_s is None:
            session.update(timeline=replace(session.facts.timeline, post_copy_at_s=at_s))
        if isinstance(session.phase, out.Broken):
            session.update(broken_since_s=None, waiting_for="")
        session.observe(out.QemuInPostCopy())

    def _see_link_lost(self, at_s: float) -> None:
        session = self._session
        session.hold_vm()
        if session.facts.timeline.post_copy_at_s is None:
            session.update(timeline=replace(session.facts.timeline, post_copy_at_s=at_s))
        if session.facts.broken_since_s is None:
            session.update(broken_since_s=at_s)
        session.observe(out.QemuLinkLost())

    def _see_report(self, report: MigrationReport) -> None:
        """Take a report, which is the truth where an event was missed."""
        session = self._session
        session.status_text = report.status_text
        progress = progress_of(report, session.facts.progress)
        if progress is not None:
            session.update(progress=progress)
            if progress.pass_goal_pages:
                self._note_pass(progress)
        match report.status:
            case MigrationStatus.FAILED | MigrationStatus.CANCELLED:
                if isinstance(session.phase, (*_ON_THE_WAY, *_SWITCHING, *_IN_POST_COPY, out.Refused, out.Cancelling)):
                    session.observe(out.QemuGaveUp(self._gave_up(report.status, report.error_desc or "")))
            case MigrationStatus.ACTIVE if isinstance(session.phase, out.Connecting):
                session.observe(out.QemuActive())
            case MigrationStatus.PRE_SWITCHOVER if isinstance(session.phase, _ON_THE_WAY):
                self._see_status(report.status, now_s())
            case MigrationStatus.POSTCOPY_ACTIVE if not isinstance(session.phase, out.Following):
                self._see_status(report.status, now_s())
            case MigrationStatus.POSTCOPY_PAUSED if not isinstance(session.phase, out.Broken):
                self._see_status(report.status, now_s())
            case MigrationStatus.COMPLETED if isinstance(session.phase, _BEFORE_SENT):
                self._see_status(report.status, now_s())

    def _see_exit(self) -> None:
        session = self._session
        ending = of_exit(self._shutdown_reason, session.last_words(), during="migration", where=f"the source {session.host_name}")
        text = ending.text
        if isinstance(session.phase, (out.Crossing, *_IN_POST_COPY)):
            text += f"; it held memory of the guest that {self._peer()} did not have yet, so the guest is lost"
        session.observe(out.QemuExited(Cause(text, ending.reason), was_watched=self._was_watched))

    async def ask_qemu(self) -> None:
        """Ask QEMU how the migration is, and take the answer as truth; a mute QEMU is left to the other watches."""
        session = self._session
        asked_at_s = now_s()
        with suppress(FerryError):
            report = await session.qemu.query_migrate()
            started_at_s = session.facts.timeline.started_at_s
            if started_at_s is not None and asked_at_s >= started_at_s:  # else it tells of an earlier migration of this QEMU
                self._see_report(report)

    async def _reattach(self) -> None:
        session = self._session
        line = session.facts.timeline
        if isinstance(session.phase, _SWITCHING) and (line.stopped_at_s is None or line.continued_at_s is None):
            # The agent ended before it wrote down when the guest was stopped: its standstill is reckoned from now on.
            known_s = line.stopped_at_s or now_s()
            session.update(timeline=replace(line, stopped_at_s=known_s, continued_at_s=line.continued_at_s or known_s))
        with suppress(FerryError):
            report = await session.qemu.query_migrate()
            state = await session.qemu.query_status()
            # A guest that came here by a migration still says `completed`; one that was sent is not in any other run state.
            is_old = report.status is MigrationStatus.COMPLETED and state not in _RUN_STATES_OF_SENT
            untouched = is_old or report.status is MigrationStatus.NONE or session.facts.timeline.started_at_s is None
            if isinstance(session.phase, out.Connecting) and untouched:
                text = "the agent was restarted before the transfer began; try again"
                session.observe(out.QemuGaveUp(Cause(text, "AGENT_RESTARTED")))
                return
            self._see_report(report)
        self._guest.suspect_stop()

    # silence and clocks

    async def _poll_progress(self) -> None:
        """Ask for numbers now and then, which is also the safety net under the events; and end a move that stands still."""
        session = self._session
        moved_at_s, moved_bytes = now_s(), -1
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            if not isinstance(session.phase, (*_ON_THE_WAY, *_SWITCHING, *_IN_POST_COPY)):
                continue
            with untraced():
                await self.ask_qemu()
                await self._look_whether_forgotten()
            progress = session.facts.progress
            passes = 0 if progress is None else progress.pass_count
            self._start_wished_post_copy(When.IMMEDIATELY, is_due=True)  # the event may have been missed
            self._start_wished_post_copy(When.AFTER_FIRST_PASS, is_due=passes > 1)
            sent_bytes = 0 if progress is None else progress.ram_transferred_bytes
            if sent_bytes != moved_bytes or not isinstance(session.phase, out.Transferring | out.Following):
                moved_at_s, moved_bytes = now_s(), sent_bytes
            elif isinstance(session.phase, out.Following):
                if now_s() - moved_at_s > POST_COPY_STALL_LIMIT_S:
                    await session.recovery.give_connection_up()
                    moved_at_s = now_s()
            elif now_s() - moved_at_s > STALL_LIMIT_S:
                text = f"no byte has moved for {STALL_LIMIT_S:g} s: the network or {self._peer()} is silent"
                session.observe(out.CancelRequested(Cause(text, "TRANSFER_STALLED")))

    async def _look_whether_forgotten(self) -> None:
        """Notice a QEMU 10.0 that has ended its migration before `postcopy-active` and says `device` for ever."""
        session = self._session
        with suppress(FerryError):
            says_device = isinstance(session.phase, out.Crossing) and session.status_text == MigrationStatus.DEVICE.value
            if says_device and not await session.qemu.has_migration_channels():
                text = f"the connection to {self._peer()} broke while the guest changed hands"
                session.observe(out.QemuForgot(Cause(text, "TRANSFER_FAILED")))

    async def _watch_mute(self) -> None:
        """Free the guest when QEMU goes mute in a TLS handshake, in which it stands still for as long as the peer is silent."""
        session = self._session
        while session.facts.options.is_psk:
            await self._until(out.Connecting)
            try:
                await self._wait_answer()
            except TimeoutError:
                if isinstance(session.phase, out.Connecting):
                    text = (
                        f"{self._peer()} went silent while the connection was made; the guest stood still for "
                        f"{MUTE_LIMIT_S:g} s, so the connection was cut and the guest goes on here"
                    )
                    session.observe(out.CancelRequested(Cause(text, "PEER_SILENT")))
            except FerryError:
                await asyncio.sleep(POLL_INTERVAL_S)
            await asyncio.sleep(MUTE_LIMIT_S / 10)

    async def _wait_answer(self) -> None:
        """Wait until QEMU answers.

        An overloaded host keeps QEMU from answering, too, while it sets the transfer up with its lock held. A cut would free nobody
        then, so only a QEMU without work of its own has no more than the limit.

        Raises:
            TimeoutError: it has not answered, and waits for its peer.
        """
        loop, pid = asyncio.get_running_loop(), self._session.process.pid
        began_s = loop.time()
        looking: asyncio.TimerHandle

        def look() -> None:
            nonlocal looking
            if is_working(find_threads(pid)):
                limit.reschedule(max(began_s + MUTE_LIMIT_S, loop.time() + 2 * LOOK_INTERVAL_S))
            looking = loop.call_later(LOOK_INTERVAL_S, look)

        looking = loop.call_later(MUTE_LIMIT_S - 2 * LOOK_INTERVAL_S, look)
        try:
            async with asyncio.timeout(MUTE_LIMIT_S) as limit:
                await self._session.qemu.monitor.probe(timeout_s=CONNECT_LIMIT_S)
        finally:
            looking.cancel()

    async def _watch_standstill(self) -> None:
        """Take the guest back when it stood still for longer than was allowed, whatever the reason."""
        session = self._session
        while True:
            await session.wait_change()
            started_s = self.standstill_began_s()
            if started_s is None:
                continue
            limit_s = session.facts.options.max_downtime_s + STANDSTILL_MARGIN_S
            await asyncio.sleep(max(started_s + limit_s - now_s(), 0.0))
            if session.guarding.was_cut_off:  # QEMU may have its guest back by the guardian; a mute one has not
                with suppress(TimeoutError):
                    async with asyncio.timeout(CUT_OFF_ANSWER_S):
                        await self.ask_qemu()
            began_s = self.standstill_began_s()
            if began_s is not None and now_s() - began_s >= limit_s:
                text = (
                    f"the guest stood still for {now_s() - began_s:.1f} s and {self._peer()} did not acknowledge it "
                    f"(allowed: {session.facts.options.max_downtime_s:g} s), so the guest goes on here"
                )
                reason = "STANDSTILL_TOO_LONG"
                if session.heartbeat.silence:
                    reason = "PEER_SILENT"
                    text = (
                        f"{session.heartbeat.silence} while the guest stood still for {now_s() - began_s:.1f} s "
                        f"(allowed: {session.facts.options.max_downtime_s:g} s), so the guest was not given to it and goes on here"
                    )
                if isinstance(session.phase, out.Crossing | out.Following):
                    if isinstance(session.phase, out.Crossing) or await self._is_mute():  # QEMU 7.2 sends the devices in either
                        session.observe(out.StoodStillTooLong())
                    await asyncio.sleep(STANDSTILL_MARGIN_S)
                else:
                    session.observe(out.CancelRequested(Cause(text, reason)))

    async def _is_mute(self) -> bool:
        try:
            await self._session.qemu.monitor.probe(timeout_s=MUTE_LIMIT_S)
        except FerryError:
            return True
        return False

    def standstill_began_s(self) -> float | None:
        """Say since when the guest stands still because of the switch-over, not because somebody wished it."""
        session = self._session
        if not isinstance(session.phase, (*_ON_THE_WAY, *_SWITCHING)) and session.phase != out.Following():
            return None
        stopped_at_s = session.facts.timeline.stopped_at_s
        if session.facts.options.pause or session.facts.guest_was_paused:
            return session.facts.timeline.continued_at_s
        return stopped_at_s

    async def _watch_connect(self) -> None:
        """Give up when the connection is not made in time; the guest runs meanwhile."""
        session = self._session
        await self._until(out.Connecting)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_LIMIT_S):
                while isinstance(session.phase, out.Connecting):
                    await session.wait_change()
                return
        way = session.facts.peer_uri or "tunnel"
        text = f"no connection to {self._peer()} in {CONNECT_LIMIT_S:g} s ({way}): is a firewall in the way?"
        session.observe(out.CancelRequested(Cause(text, "CONNECT_TIMED_OUT")))

    async def _watch_destination(self) -> None:  # noqa: C901 - one line each that it may say
        """Follow the destination's half: it knows why a load failed, and no event tells us when it dies in pre-switchover."""
        session = self._session
        while True:
            if session.destination is None or isinstance(session.phase, out.Begun):
                await session.wait_change()
                continue
            try:
                async for report in session.destination.watch(session.facts.migration_id):
                    self.destination_is_over = report.is_undone or report.is_final
                    if report.error and report.error != session.facts.peer_words:
                        session.update(peer_words=report.error)
                    if report.is_lost:
                        lost = "" if report.reason in GUEST_ENDS else "; the guest was lost there"
                        text = f"{self._peer()}: {report.error or 'its QEMU ended'}{lost}"
                        session.observe(out.DestinationLost(Cause(text, report.reason or "QEMU_ENDED"), report.is_kept))
                    if report.is_undone:
                        await self.ask_qemu()  # which may have ended it before, while this agent was away
                    has_never_run = report.is_undone and (report.is_final or isinstance(session.phase, out.Crossing))
                    if has_never_run and isinstance(session.phase, (out.Crossing, *_IN_POST_COPY)):
                        text = f"{self._peer()}: {report.error or 'its half was undone'}"
                        session.observe(out.DestinationNeverRan(Cause(text, report.reason or "DESTINATION_FAILED")))
                    if report.is_undone and isinstance(session.phase, (out.Mirroring, *_ON_THE_WAY, out.Switching)):
                        text = f"{self._peer()}: {report.error or 'its half was undone'}{self._plain_hint()}"
                        session.observe(out.CancelRequested(Cause(text, report.reason or "DESTINATION_FAILED")))
            except Unreachable as error:
                self._see_peer_gone(error)
            except FerryError as error:
                _log.debug("destination not followed", migration=session.facts.migration_id, error=error.text)
            await asyncio.sleep(WATCH_RETRY_S)

    def _see_peer_gone(self, error: Unreachable) -> None:
        """Take the guest back from a host whose agent has just gone, unless QEMU was quicker."""
        session = self._session
        session.heartbeat.suspect()
        if isinstance(session.phase, out.Switching):
            text = f"the agent of {self._peer()} went away while the guest was being given to it ({error.text})"
            session.observe(out.CancelRequested(Cause(text, error.reason)))

    async def _until(self, phase: type) -> None:
        while not isinstance(self._session.phase, phase):
            await self._session.wait_change()

    def _peer(self) -> str:
        return self._session.facts.peer or "the destination"

    def _gave_up(self, status: MigrationStatus, why: str) -> Cause:
        ending = of_status(status, why, what=f"the transfer to {self._peer()}")
        session = self._session
        if ending is None:
            raise Bug(f"status {status.value} ends no transfer")
        if status is MigrationStatus.CANCELLED and (self._was_away or session.guarding.was_cut_off):
            here = session.host_name
            text = f"the agent of {here} was away when the guest was to be given to {self._peer()}; it goes on here, try again"
            return Cause(text, "AGENT_AWAY")
        if status is MigrationStatus.CANCELLED:
            return Cause(ending.text, ending.reason, by_wish=True)
        return Cause(f"{ending.text}{self._disk_hint()}{self._plain_hint()}", ending.reason)

    def _disk_hint(self) -> str:
        """Say what is wrong with a disk here: QEMU flushes it before the guest goes, and 7.2 does not say that it cannot."""
        error = self._guest.last_error
        if not error:
            return ""
        return f"; before that its guest was told of an I/O error ({error}): mend what the disk stands on and try again"

    def _plain_hint(self) -> str:
        if not self._session.facts.options.plain or isinstance(self._session.phase, out.Switching):
            return ""
        return "; its port is not encrypted, where a stranger who connects ends a move like this"
