"""The destination's half: what its machine wants done to QEMU, and what QEMU says."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
from opentelemetry import context as otel_context

from agent.blockjobs.images import discard
from agent.migration import arrival
from agent.migration import incoming as inc
from agent.migration.clock_sync import sync_clock
from agent.migration.clocks import now_s
from agent.migration.destination_link import DestinationLink
from agent.migration.disk_exports import disks_session, stop_exports, treat_holes_as_defined
from agent.migration.errors import GuestLost, GuestNeverRan
from agent.migration.guarding import Guarding, incoming_charge
from agent.migration.machine import Cause
from agent.migration.order import Endpoint, Transport
from agent.migration.progress import progress_of
from agent.migration.qemu_setup import CREDENTIALS_ID, remove_key
from agent.migration.record import Record, find_cause
from agent.migration.session import Machine, Session
from agent.migration.strangers import Strangers
from agent.migration.surroundings import Surroundings
from agent.migration.taking_over import Goes, take_over
from agent.qemu.commands import Qemu
from agent.qemu.endings import of_exit, of_stop, reset_of, stop_of
from agent.qemu.errors import QemuGone, QemuRefused
from agent.qemu.identity import ProcessIdentity
from agent.qemu.status import MigrationReport, MigrationStatus, RunState, migration_status_of
from agent.qemu.subscription import Event, Gone, Reconnected
from agent.vm.jobs import JobLock
from agent.vm.vm import Vm
from common.errors import Expired, FerryError, InvalidRequest, WrongState
from common.storage import StorageFailed

RESUME_TIMEOUT_S: Final = 5.0
ARRIVAL_TIMEOUT_S: Final = 4.0
RETRY_FIRST_S: Final = 0.01
RETRY_LAST_S: Final = 1.0
TIDY_TIMEOUT_S: Final = 1.0
STDERR_GRACE_S: Final = 0.05

_BEFORE_LOADED = (inc.Reserved, inc.Listening, inc.Loading)
_BEFORE_TAKEN = (*_BEFORE_LOADED, inc.Loaded, inc.Arrived)
_TAKEN_OVER = (inc.Entering, inc.Filling, inc.Resuming, inc.Running)
_log = structlog.get_logger()


_MACHINE: Final = Machine[inc.Phase, inc.Event, inc.Effect](
    inc.step,
    inc.effects_after_restart,
    inc.FINAL,
    remembered_by_qemu=(inc.Loading, inc.Loaded, inc.Arrived, inc.Filling, inc.Running),
    standing=(inc.Loaded, inc.Resuming),
    decision_after={
        inc.Loading: inc.Resuming(keep_paused=False),
        inc.Loaded: inc.Resuming(keep_paused=False),
        inc.Arrived: inc.Entering(keep_paused=False),
    },
    written_first=(inc.Finished,),
    instead={},
)


class DestinationSession(Session[inc.Phase, inc.Event, inc.Effect]):
    """The half of a migration whose guest is to come here."""

    def __init__(
        self,
        record: Record[inc.Phase],
        *,
        around: Surroundings,
        vm: Vm | None,
        lock: JobLock | None,
        parent: otel_context.Context,
    ) -> None:
        super().__init__(
            record,
            _MACHINE,
            store=around.store,
            lock=lock,
            parent=parent,
        )
        self._around = around
        self._vm = vm
        self.status_text = ""
        self.endpoint: Endpoint | None = None
        self._runs_since_s: float | None = None
        self._shutdown_reason = ""
        self._may_have_run = not isinstance(
            record.phase, _BEFORE_TAKEN
        )  # a `cont` that was not refused, of this agent or an earlier one
        self._strangers: Strangers | None = None
        self.link = DestinationLink(self, around)
        self.source_address = ""
        """Where the source's agent is, as it says itself; empty while it has not."""
        self._guarding = Guarding(self, around, lambda: incoming_charge(self, around))

    def take(self, vm: Vm, lock: JobLock) -> None:
        """Own the VM that was started for this migration."""
        self._vm, self._lock = vm, lock

    @property
    def process(self) -> ProcessIdentity:
        """The QEMU that the guest comes to."""
        if self._vm is None:
            raise QemuGone(f"VM {self.facts.vm_name} has no QEMU on this host")
        return self._vm.get_keeper().identity

    @property
    def qemu(self) -> Qemu:
        """The commands of the QEMU that the guest comes to."""
        if self._vm is None:
            raise QemuGone(f"VM {self.facts.vm_name} has no QEMU on this host")
        return self._around.vms.qemu(self._vm)

    def guard_port(self, port: int) -> None:
        """Cut strangers on the port that QEMU listens on, from the next turn of the watch on."""
        if self._strangers is not None:
            self._strangers.move(port)
        elif self._vm is not None:
            self._strangers = Strangers(self.facts.migration_id, self._vm.get_keeper().identity.pid, port)
            self.update()

    def report_channels(self, ports: tuple[int, ...], *, is_complete: bool) -> None:
        """Take the source's word for which connections are its own."""
        if self._strangers is not None:
            self._strangers.report(ports, is_complete=is_complete)

    def check_token(self, token: bytes) -> None:
        """Let nobody but the source's agent, and whom it told, decide where the guest goes on.

        Raises:
            InvalidRequest: the token is not the one whose digest Prepare was given.
        """
        if not hmac.compare_digest(hashlib.sha256(token).hexdigest(), self.facts.token_sha256):
            raise InvalidRequest(f"migration {self.facts.migration_id}: wrong resume token", reason="RESUME_TOKEN_WRONG")

    async def resume(self, token: bytes, *, keep_paused: bool) -> float:
        """Let the guest go on here; return for how many seconds it has run. May be repeated.

        Raises:
            InvalidRequest: the token is not the one whose digest Prepare was given.
            GuestNeverRan: this half was undone, so the guest is the source's.
            GuestLost: QEMU ended after it had taken the guest over.
            WrongState: the guest is not loaded yet.
            Expired: it does not run yet; ask again.
        """
        self.check_token(token)
        return await self._resume(keep_paused=keep_paused)

    async def own(self) -> None:
        """Let the guest go on here, and keep it, without the source's token.

        Raises:
            Expired: it does not run yet; ask again.
        """
        await self._resume(keep_paused=self.facts.stays_paused)
        await self.finish()

    @property
    def host_name(self) -> str:
        """The name of this host."""
        return self._around.identity.name

    async def ask_qemu(self) -> None:
        """Ask QEMU how the migration is, and take the answer as truth."""
        await self._ask_qemu()

    async def _resume(self, *, keep_paused: bool) -> float:
        if isinstance(self.phase, _BEFORE_LOADED):  # QEMU's event may still be on its way
            await self._ask_qemu()
        if isinstance(self.phase, _BEFORE_LOADED) and self.facts.options.post_copy.is_allowed:
            with suppress(TimeoutError):  # QEMU 7.2 tells the source before the guest is sent
                async with asyncio.timeout(ARRIVAL_TIMEOUT_S):
                    await self.wait_phase(inc.Arrived, inc.Loaded, inc.Undoing)
        if isinstance(self.phase, inc.Loaded | inc.Arrived) and self._has_qemu_ended():
            await self._see_exit()  # not noticed yet; once Resume is written down, nobody could say that the guest never ran
        if isinstance(self.phase, inc.Undoing | inc.Abandoned):
            return await self._refuse_undone()
        if not isinstance(self.phase, inc.Finished | inc.Lost):
            self.request(
                inc.ResumeRequested(keep_paused),
                "the guest is not loaded yet, so it cannot go on here",
                "GUEST_NOT_LOADED",
            )
            try:
                async with asyncio.timeout(RESUME_TIMEOUT_S):
                    await self.wait_phase(inc.Running, inc.Filling, inc.Ending, inc.Undoing)
            except TimeoutError as error:
                why = self.facts.waiting_for or f"no answer in {RESUME_TIMEOUT_S:g} s"
                raise Expired(f"the guest does not run here yet: {why}", reason="GUEST_NOT_RUNNING_YET") from error
        if isinstance(self.phase, inc.Undoing | inc.Abandoned):  # every `cont` was refused until QEMU ended
            return await self._refuse_undone()
        if isinstance(self.phase, inc.Lost | inc.Ending):
            raise GuestLost.because(self.phase.cause, is_kept=isinstance(self.phase, inc.Lost) and self.phase.is_kept)
        return 0.0 if self._runs_since_s is None else max(now_s() - self._runs_since_s, 0.0)

    def _has_qemu_ended(self) -> bool:
        keeper = None if self._vm is None else self._vm.keeper
        return not self.facts.options.modes.offline and (keeper is None or not keeper.identity.is_alive())

    async def _refuse_undone(self) -> float:
        async with asyncio.timeout(RESUME_TIMEOUT_S):
            await self.wait_phase(inc.Abandoned)
        cause = find_cause(self.phase)
        why = "" if cause is None else cause.text
        raise GuestNeverRan(f"the guest never ran on {self._around.identity.name}, and its QEMU there is gone: {why}")

    # what QEMU says

    async def _watch(self, *, after_restart: bool) -> None:
        if self.facts.options.modes.offline:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_strangers())
            group.create_task(self._follow_qemu(after_restart=after_restart))
            group.create_task(self.link.watch_arrival())
            group.create_task(self._guarding.run())

    async def _watch_strangers(self) -> None:
        while self._strangers is None:
            await self.wait_change()
        await self._strangers.run()

    async def _follow_qemu(self, *, after_restart: bool) -> None:
        while self._vm is None and not after_restart:
            await self.wait_change()
        monitor = None if self._vm is None else await self._vm.wait_attached()
        if after_restart:
            self.heed_guardian()
        if monitor is None:
            await self._see_exit()
            return
        with monitor.subscribe() as notices:
            if after_restart:
                await self._ask_qemu()
                await self._see_running()
            async for notice in notices:
                match notice:
                    case Event():
                        await self._see_event(notice)
                    case Reconnected():
                        self.heed_guardian()
                        await self._ask_qemu()
                    case Gone():
                        await self._see_exit()

    async def _see_running(self) -> None:
        """Take over a guest that an earlier agent let run and could not write down."""
        with suppress(FerryError):
            if isinstance(self.phase, inc.Loaded | inc.Arrived) and await self.qemu.query_status() is RunState.RUNNING:
                self.observe(inc.ResumeRequested(keep_paused=False))

    def heed_guardian(self) -> None:
        """Learn that the guardian has let the guest go on while this agent was away, with the token that was meant for it."""
        if not isinstance(self.phase, inc.Listening | inc.Loading | inc.Loaded | inc.Resuming):
            return
        note = self._guarding.find_note()
        if note is None:
            return
        self._may_have_run, self._runs_since_s = True, note.at_s
        self.observe(inc.QemuLoaded())
        self.observe(inc.ResumeRequested(note.keep_paused))

    async def _ask_qemu(self) -> None:
        """Ask QEMU how the migration is, and take the answer as truth."""
        with suppress(FerryError):
            self._see_report(await self.qemu.query_migrate())

    async def _see_event(self, event: Event) -> None:
        status = migration_status_of(event)
        if event.name == "RESUME":
            self._runs_since_s = event.at_s
            self.update(guest_ran=True, waiting_for="")
            self.observe(inc.GuestRuns())
        elif event.name == "SHUTDOWN":
            self._shutdown_reason = str(event.data.get("reason", ""))
        elif status is MigrationStatus.FAILED:
            self.status_text = status.value
            await asyncio.sleep(STDERR_GRACE_S)  # the reason is on stderr, and QEMU ends in a moment
            self.observe(inc.QemuGaveUp(self._load_failed()))
        elif status is not None:
            self._see_status(status)
        elif isinstance(self.phase, _TAKEN_OVER):
            self._see_guest(event)

    def _see_guest(self, event: Event) -> None:
        """Tell what a guest does by itself before it is all here."""
        text, stop = reset_of(event), stop_of(event)
        if stop is not None:
            ending = of_stop(*stop, during="migration", where=self._around.identity.name, vm=self.facts.vm_name)
            text = "" if ending is None else ending.text
        if text and text not in self.facts.warnings:
            self.update(warnings=(*self.facts.warnings, text))

    def _see_report(self, report: MigrationReport) -> None:
        if report.status is MigrationStatus.FAILED:
            self.observe(inc.QemuGaveUp(self._load_failed()))
        else:
            self._see_status(report.status)

    def _see_status(self, status: MigrationStatus) -> None:
        self.status_text = status.value
        self.link.see(status)
        if status is MigrationStatus.ACTIVE:
            self.observe(inc.QemuActive())
        elif status is MigrationStatus.COMPLETED:
            self.observe(inc.QemuLoaded())
        else:
            self.update()

    async def _see_exit(self) -> None:
        if isinstance(self.phase, inc.Reserved):
            return  # Prepare sees it too, and says more
        self.heed_guardian()
        words = "" if self._vm is None else self._around.vms.last_words(self._vm)
        where = f"the destination {self._around.identity.name}"
        ending = of_exit(self._shutdown_reason, words, during="migration", where=where)
        if ending.is_guests and isinstance(self.phase, inc.Running):
            self.update(warnings=(*self.facts.warnings, f"{ending.text}, after it had come"))
        never_ran = not (self._may_have_run or self.facts.guest_ran)
        self.observe(inc.QemuExited(Cause(ending.text, ending.reason), by_guest=ending.is_guests, never_ran=never_ran))

    def _load_failed(self) -> Cause:
        words = "" if self._vm is None else self._around.vms.last_words(self._vm)
        return Cause(f"the guest could not be loaded{': ' if words else ''}{words}", "LOAD_FAILED")

    # effects

    async def _run_effect(self, effect: inc.Effect) -> None:
        match effect:
            case inc.EnsureGuestRuns():
                await self._run_guest()
            case inc.EnsureUndone():
                await self._undo()
            case inc.EnsureDefinitionKept():
                await self._keep_definition()
            case inc.EnsureFinished():
                await self.finish()

    def _on_failure(self, cause: Cause) -> None:
        self.observe(inc.AbandonRequested(cause))

    def _on_unwritten(self, failure: StorageFailed) -> None:
        """Refuse the guest while it is the source's: once it is given away it is run here, written down or not."""
        if isinstance(self.phase, inc.Loading) and not self.facts.options.post_copy.is_allowed:
            self.observe(inc.AbandonRequested(Cause(failure.text, failure.reason)))

    async def _run_guest(self) -> None:
        delay_s = RETRY_FIRST_S
        while isinstance(self.phase, inc.Resuming | inc.Entering):
            try:
                if self.facts.copies:
                    await stop_exports(self.qemu)
                goes = await self._take_over(keep_paused=self.phase.keep_paused)
                if goes is not Goes.NOT_YET:
                    is_paused = goes is Goes.STAYS_STOPPED
                    self.update(guest_ran=True, waiting_for="", arrival=replace(self.facts.arrival, is_paused=is_paused))
                    self.observe(inc.GuestRuns())
                    return
            except QemuGone:
                return
            except FerryError as error:
                _log.warning("the guest does not run yet", migration=self.facts.migration_id, error=error.text)
                self.update(waiting_for=error.text)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _take_over(self, *, keep_paused: bool) -> Goes:
        """Let the guest go on; remember whether it may have run."""
        if self.facts.options.modes.offline:  # a definition has no QEMU
            return Goes.STAYS_STOPPED
        may_have_run, self._may_have_run = self._may_have_run, self._may_have_run or not keep_paused
        try:
            return await take_over(self.qemu, self.facts.vm_name, keep_paused=keep_paused, has_run=lambda: self.facts.guest_ran)
        except QemuRefused:  # it stands as it stood
            self._may_have_run = may_have_run
            raise

    async def _keep_definition(self) -> None:
        """Store what this host is to keep of a guest that ended here."""
        delay_s = RETRY_FIRST_S
        while isinstance(self.phase, inc.KeepingDefinition):
            try:
                is_kept = await self._keep_vm()
            except FerryError as error:
                self.update(waiting_for=error.text)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_LAST_S)
            else:
                self.update(waiting_for="", warnings=(*self.facts.warnings, *self._autostart_warning()))
                self.observe(inc.DefinitionKept(is_kept))

    def _autostart_warning(self) -> tuple[str, ...]:
        if self.facts.stored is None or not self.facts.stored.autostart:
            return ()
        name = self.facts.vm_name
        return (f"{name} does not start with {self.host_name} any more, since it ended in the move: ferry vm autostart {name}",)

    async def finish(self) -> None:
        """Make the VM this host's own, and drop what only the migration needed. May be repeated.

        Raises:
            WrongState: the guest is not here.
        """
        if isinstance(self.phase, inc.Finished):
            return
        if not isinstance(self.phase, inc.Running) or self._lock is None:
            raise WrongState(
                f"migration {self.facts.migration_id}: the guest is not here (phase {type(self.phase).__name__})",
                reason="WRONG_PHASE",
            )
        if self._vm is not None and self._vm.running is not None:
            self._around.vms.keep_here(self._lock)
        if self.facts.stored is not None:
            self._around.vms.persist(self._lock, self.facts.stored)
        self._own_disks()
        await self._drop_credentials()
        await self._end_copying()
        await self._keep_figures()
        await self._sync_clock()
        self.request(inc.FinishRequested(), "the guest is not here", "WRONG_PHASE")

    def _own_disks(self) -> None:
        """Let images that were copied to count as the newest: the guest has come to them."""
        if self.facts.copies and self._vm is not None:
            running = self._vm.running
            self._around.vms.older_disks.forget(self._vm.last_definition if running is None else running.definition)

    async def _keep_vm(self) -> bool:
        """Keep the VM of a guest that ended here, without autostart: it may be started elsewhere by force. Say whether it could."""
        if self._lock is None or self._vm is None:
            return False
        while self._vm.running is not None:  # noqa: ASYNC110 -- until the end of its QEMU is on record, in a moment
            await asyncio.sleep(RETRY_FIRST_S)
        self._own_disks()
        if self.facts.stored is not None:
            self._around.vms.persist(self._lock, replace(self.facts.stored, autostart=False))
        return True

    async def _end_copying(self) -> None:
        """Let nodes be again what the definition says."""
        running = None if self._vm is None else self._vm.running
        for copy in self.facts.copies:
            if running is not None:
                await treat_holes_as_defined(self.qemu, running.definition, copy)

    async def _keep_figures(self) -> None:
        """Read how long vCPUs waited for pages, if they had to, and how often the network is told."""
        with suppress(FerryError, TimeoutError):
            async with asyncio.timeout(TIDY_TIMEOUT_S):
                self.update(progress=progress_of(await self.qemu.query_migrate()))
                rounds = await arrival.announce_round_count(self.qemu)
                self.update(arrival=replace(self.facts.arrival, announce_round_count=rounds))

    async def _sync_clock(self) -> None:
        modes, is_paused = self.facts.options.modes, self.facts.arrival.is_paused
        running = None if self._vm is None else self._vm.running
        if running is not None and not (modes.leave_clock or is_paused):
            with suppress(FerryError):
                clock = await sync_clock(self.qemu, running.definition)
                self.update(arrival=replace(self.facts.arrival, clock=clock))

    async def _undo(self) -> None:
        delay_s = RETRY_FIRST_S
        while isinstance(self.phase, inc.Undoing | inc.Ending):
            try:
                if self._lock is not None:
                    await self._around.vms.forget(self._lock)
            except FerryError as error:
                _log.warning("the destination's QEMU does not end", migration=self.facts.migration_id, error=error.text)
                self.update(waiting_for=error.text)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_LAST_S)
            else:
                if isinstance(self.phase, inc.Undoing):  # whoever hears that it is undone may try again at once
                    await asyncio.to_thread(self._discard_images)
                self.observe(inc.Undone(never_ran=not (self._may_have_run or self.facts.guest_ran)))

    def _discard_images(self) -> None:
        for made in self.facts.made_images:
            try:
                discard(made)
            except OSError as error:
                _log.warning("image not removed", migration=self.facts.migration_id, path=made.path, error=error.strerror)

    async def _drop_credentials(self) -> None:
        if self.facts.options.is_psk:
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(TIDY_TIMEOUT_S):
                    await self.qemu.set_parameters({"tls-creds": ""})
                    await self.qemu.object_del(CREDENTIALS_ID)

    async def _tidy(self) -> None:
        remove_key(self._around.key_directory(self.facts.migration_id))
        self._guarding.remove_note()
        await self.link.close()
        if isinstance(self.phase, inc.Abandoned):
            self._discard_images()
        elif isinstance(self.phase, inc.Lost) and self.facts.copies and not self.phase.is_kept:
            await self._keep_vm()  # where its newest disks are
        # A QEMU that is killed leaves the sockets that it listened on.
        for purpose in ("in", "nbd-in"):
            self._around.store.session_socket_path(self.facts.migration_id, purpose).unlink(missing_ok=True)
        if self.facts.options.transport is Transport.TUNNEL:
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(TIDY_TIMEOUT_S):
                    await self._around.tunnel.close_session(self.facts.migration_id)
                    await self._around.tunnel.close_session(disks_session(self.facts.migration_id))
