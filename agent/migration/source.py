"""The source's half: what its machine wants done to QEMU."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Final

import structlog
from opentelemetry import context as otel_context

from agent.migration import newest_disks, outgoing_steps
from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration.clocks import now_s
from agent.migration.disk_copies import DiskCopies
from agent.migration.disk_wishes import check_disk_bandwidth
from agent.migration.errors import GuestLost, GuestNeverRan
from agent.migration.giving_back import GivingBack
from agent.migration.guarding import Guarding, outgoing_charge
from agent.migration.heartbeat import Heartbeat
from agent.migration.machine import Cause
from agent.migration.network_gap import NetworkGapWatch
from agent.migration.order import Endpoint
from agent.migration.parts import Destination
from agent.migration.progress import progress_of
from agent.migration.record import Record, find_cause, tells_all
from agent.migration.recovery import Recovery
from agent.migration.session import Machine, Session
from agent.migration.source_watch import SourceWatch
from agent.migration.steering import Steering
from agent.migration.surroundings import Surroundings
from agent.migration.transfer import Transfer
from agent.migration.transfer_spans import record_post_copy, record_transfer
from agent.qemu.commands import Qemu
from agent.qemu.endings import OWN_STOPS
from agent.qemu.errors import QemuGone, QemuRefused, QemuSilent
from agent.qemu.identity import ProcessIdentity
from agent.qemu.monitor import Monitor
from agent.qemu.status import MigrationStatus, RunState
from agent.vm.definition import Definition
from agent.vm.jobs import JobLock
from agent.vm.vm import Vm
from common.errors import Expired, FerryError, InvalidRequest, Unreachable, WrongState

CANCEL_ANSWER_S: Final = 0.25
YANK_ANSWER_S: Final = 0.1
CANCEL_PATIENCE_S: Final = 0.3
RETRY_FIRST_S: Final = 0.02
RETRY_LAST_S: Final = 2.0
FIGURES_TIMEOUT_S: Final = 1.0
PEER_WORDS_S: Final = 0.5

_log = structlog.get_logger()


_MACHINE: Final = Machine[out.Phase, out.Event, do.Effect](
    outgoing_steps.step,
    outgoing_steps.effects_after_restart,
    out.FINAL,
    remembered_by_qemu=(out.Transferring, out.Settling, out.Following, out.Broken, out.Sent, out.HandedOver),
    standing=(out.Switching, out.Sent),
    decision_after={out.Transferring: out.Switching(), out.Leaving: out.Crossing(), out.Settling: out.Switching()},
    written_first=(out.Mirroring, out.Connecting, out.Switching, out.Crossing, out.Retiring),
    instead=dict.fromkeys((out.Mirroring, out.Connecting, out.Switching, out.Crossing), out.CancelRequested),
)


class SourceSession(Session[out.Phase, out.Event, do.Effect]):
    """The half of a migration whose guest is here."""

    def __init__(
        self,
        record: Record[out.Phase],
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
        self._endpoint: Endpoint | None = None
        self._destination: Destination | None = None
        self._connections = AsyncExitStack()
        self.transfer = Transfer(record.facts.migration_id, record.facts.options, around, uri=record.facts.peer_uri)
        self.status_text = ""
        self.disks = DiskCopies(self, around)
        self._vcpus = asyncio.Lock()  # a `cont` is answered before QEMU may complete: after that it would run the guest twice
        self._watcher = SourceWatch(self)
        self.recovery = Recovery(self)
        self.giving_back = GivingBack(self, around)
        self.steering = Steering(self)
        self.heartbeat = Heartbeat(self)
        self.guarding = Guarding(self, around, lambda: outgoing_charge(self, around))
        self._network_gap = NetworkGapWatch(self)

    @property
    def qemu(self) -> Qemu:
        """The commands of the guest's QEMU."""
        if self._vm is None:
            raise QemuGone(f"VM {self.facts.vm_name} is not on this host any more")
        return self._around.vms.qemu(self._vm)

    @property
    def process(self) -> ProcessIdentity:
        """The guest's QEMU."""
        if self._vm is None:
            raise QemuGone(f"VM {self.facts.vm_name} is not on this host any more")
        return self._vm.get_keeper().identity

    @property
    def running_definition(self) -> Definition | None:
        """What the guest runs as; None once its QEMU has ended."""
        return None if self._vm is None or self._vm.running is None else self._vm.running.definition

    async def wait_attached(self) -> Monitor | None:
        """Return the QMP connection of the guest's QEMU once it is there, or None when its process has ended."""
        return None if self._vm is None else await self._vm.wait_attached()

    @property
    def destination(self) -> Destination | None:
        """The destination's agent, once Perform told its address."""
        return self._destination

    @property
    def host_name(self) -> str:
        """The name of this host."""
        return self._around.identity.name

    @property
    def agent_address(self) -> str:
        """Where other agents find this one."""
        return self._around.advertised_address

    def claim(self, claimant: str) -> bytes:
        """Return the token of a guest that was sent, for the guardian of a destination whose agent is away; empty names are local.

        Raises:
            InvalidRequest: the guest was not sent to this host.
            WrongState: it was not sent, or not any more.
        """
        facts = self.facts
        if claimant and facts.peer and claimant != facts.peer:
            raise InvalidRequest(f"migration {facts.migration_id} does not lead to {claimant}", reason="NOT_ALLOWED")
        if not isinstance(self.phase, out.Sent):
            raise WrongState(f"migration {facts.migration_id}: the guest was not sent", reason="GUEST_NOT_SENT")
        self.update(guest_ran=True)
        self.update(waiting_for=self._waiting_text("it is away"))
        self.save()  # nobody may be told any more that the guest did not run there
        return bytes.fromhex(facts.token)

    @property
    def standstill_s(self) -> float | None:
        """For how long the guest has stood still because of the switch-over; None while it does not."""
        began_s = self._watcher.standstill_began_s()
        return None if began_s is None else now_s() - began_s

    def last_words(self) -> str:
        """Read QEMU's last message; empty when it said nothing."""
        return "" if self._vm is None else self._around.vms.last_words(self._vm)

    async def perform(self, endpoint: Endpoint, agent_address: str, peer: str) -> None:
        """Start the transfer; follow this session to see what becomes of it.

        Raises:
            WrongState: it was started, or ended, before.
        """
        await self._connect(agent_address)
        if not isinstance(self.phase, out.Begun):
            raise WrongState(
                f"migration {self.facts.migration_id} cannot be performed in phase {type(self.phase).__name__}",
                reason="WRONG_PHASE",
            )
        self._endpoint = endpoint
        self.parent = otel_context.get_current()
        copies = () if endpoint.disks is None else endpoint.disks.copies
        self.update(peer=peer, peer_address=agent_address, peer_uri=endpoint.uri, copies=copies)
        if copies and self._vm is not None:
            self.update(is_kept_there=newest_disks.will_be_kept_there(self._vm, self.facts))
            await asyncio.to_thread(newest_disks.mark, self._around.vms, self._vm, self.facts)
        self.transfer = Transfer(self.facts.migration_id, self.facts.options, self._around, uri=endpoint.uri)
        self.request(out.PerformRequested(has_disks=bool(copies)), "cannot be performed", "WRONG_PHASE")

    def pause(self) -> None:
        """Stop the guest's vCPUs for the rest of the transfer; it runs again after the hand-over.

        Raises:
            WrongState: the switch-over has begun, or the guest is gone.
        """
        self.request(out.PauseRequested(), "cannot be paused any more: the guest changes hands", "TOO_LATE")
        self.update(options=self.facts.options.paused())
        self.keep()

    def unpause(self) -> None:
        """Let vCPUs that were stopped for the transfer go on.

        Raises:
            WrongState: they were not, or the switch-over has begun, or the guest is gone.
        """
        if not self.facts.options.pause and not self.is_over:
            raise WrongState(
                f"migration {self.facts.migration_id} was not paused: there is nothing to continue", reason="NOT_PAUSED"
            )
        self.request(out.UnpauseRequested(), "cannot be continued any more: the guest changes hands", "TOO_LATE")

    async def ask_qemu(self) -> None:
        """Ask QEMU how the migration is, and take the answer as truth."""
        await self._watcher.ask_qemu()

    async def set_limits(
        self,
        *,
        bandwidth_bytes_per_second: int | None,
        max_downtime_s: float | None,
        max_duration_s: float | None = None,
        disk_bandwidth_bytes_per_second: int | None = None,
    ) -> None:
        """Change bounds while the transfer runs; QEMU heeds them within 100 ms.

        Raises:
            InvalidRequest: out of range.
            WrongState: the guest is switching or gone already.
        """
        options = self.facts.options
        is_bandwidth_alone = bandwidth_bytes_per_second is not None and max_downtime_s is None and max_duration_s is None
        if isinstance(self.phase, out.Following) and bandwidth_bytes_per_second is not None and is_bandwidth_alone:
            await self._set_post_copy_bandwidth(bandwidth_bytes_per_second)
            return
        if bandwidth_bytes_per_second is not None:
            options = replace(options, bandwidth_bytes_per_second=bandwidth_bytes_per_second)
        if max_downtime_s is not None:
            options = replace(options, max_downtime_s=max_downtime_s)
        if max_duration_s is not None:
            options = replace(options, budget=replace(options.budget, max_duration_s=max_duration_s))
        if disk_bandwidth_bytes_per_second is not None:
            check_disk_bandwidth(disk_bandwidth_bytes_per_second)
            options = replace(options, disks=replace(options.disks, bandwidth_bytes_per_second=disk_bandwidth_bytes_per_second))
        if not isinstance(self.phase, out.Begun | out.Mirroring | out.Connecting | out.Transferring | out.Leaving):
            raise WrongState(
                f"migration {self.facts.migration_id}: bounds cannot be changed any more (phase {type(self.phase).__name__})",
                reason="TOO_LATE",
            )
        self.update(options=options)
        self.steering.change(is_allowed_at_once=max_downtime_s is not None)
        await self._apply_bounds()
        await self.disks.set_bandwidth()

    async def _apply_bounds(self) -> None:
        await self.qemu.set_parameters(self.steering.limits)

    async def _set_post_copy_bandwidth(self, bytes_per_second: int) -> None:
        wished = replace(self.facts.options.post_copy, bandwidth_bytes_per_second=bytes_per_second)
        await self.qemu.set_parameters({"max-postcopy-bandwidth": bytes_per_second})
        self.update(options=replace(self.facts.options, post_copy=wished))
        self.keep()

    async def reattach(self) -> None:
        """Take the transfer up again after the agent was restarted."""
        if self.facts.peer_address:
            await self._connect(self.facts.peer_address)

    async def _connect(self, agent_address: str) -> None:
        if self._destination is None:
            self._destination = await self._connections.enter_async_context(self._around.peers.connect(agent_address))

    def start_postcopy(self, cause: str) -> None:
        """Let the guest go now and the rest of its memory after it; asks, does not wait. Again is fine.

        Raises:
            WrongState: post-copy was not wished for, or memory is not on its way yet or any more.
        """
        if not self.facts.options.post_copy.is_allowed:
            raise WrongState(
                f"migration {self.facts.migration_id} was started without post-copy; --postcopy allowed makes it possible",
                reason="POSTCOPY_NOT_ALLOWED",
            )
        if isinstance(self.phase, out.Crossing | out.Following | out.Broken):
            return
        if not self.facts.post_copy_cause:
            self.update(post_copy_cause=cause)
        self.request(out.PostCopyRequested(), "post-copy cannot begin now", "WRONG_PHASE")

    def hold_vm(self) -> None:
        """Let the job lock tell why the guest's QEMU must not be ended."""
        if self._lock is not None:
            self._lock.why = f"not possible any more, {self._halved}"

    @property
    def too_late(self) -> str:
        """Say why nothing can be undone."""
        peer = self.facts.peer or "the destination"
        if isinstance(self.phase, out.Crossing | out.Following | out.Broken):
            return f"not possible any more, {self._halved}"
        if isinstance(self.phase, out.Refused):
            return f"not possible any more, the guest never ran on {peer} and comes back here"
        if not self.facts.guest_ran:
            return f"not possible any more, the guest was given to {peer}, which is asked to run it"
        return f"not possible any more, the guest {'is, paused as it was,' if self.facts.guest_was_paused else 'runs'} on {peer}"

    @property
    def _halved(self) -> str:
        return f"the guest runs on {self.facts.peer or 'the destination'} and part of its memory is still here"

    # effects

    async def _watch(self, *, after_restart: bool) -> None:
        running = None if after_restart or self._vm is None else self._vm.running
        if not self.facts.options.modes.offline:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watcher.run(after_restart=after_restart))
                group.create_task(self.guarding.run())
                if running is not None:
                    group.create_task(self._network_gap.run(running.definition))
        elif isinstance(self.phase, out.Connecting) and after_restart:
            self.observe(
                out.QemuGaveUp(Cause("the agent was restarted before anything was given away; try again", "AGENT_RESTARTED"))
            )

    async def _run_effect(self, effect: do.Effect) -> None:  # noqa: C901, PLR0912 - one line an effect
        match effect:
            case do.StartMirrors():
                await self._start_mirrors()
            case do.SettleMirrors():
                await self._settle_mirrors()
            case do.StartTransfer() if self.facts.options.modes.offline:
                self._give_definition_away()
            case do.StartTransfer():
                await self._start_transfer()
            case do.ContinueMigration():
                await self._continue_migration()
            case do.StopGuest():
                await self.qemu.stop()
            case do.StartGuest():
                await self._start_guest()
            case do.FreeGuest():
                await self._free_guest()
            case do.EnsureGuestRestored():
                await self._restore_guest()
            case do.RequestResume():
                await self._request_resume()
            case do.EnsureHuskEnded():
                await self._end_husk()
            case do.StartPostCopy():
                await self._start_post_copy()
            case do.CutConnection():
                await self.cut_and_yank()
            case do.EnsureRecovered():
                await self.recovery.run()
            case do.EnsureGivenBack():
                await self.giving_back.run()
            case do.RecordPostCopy():
                await self._keep_figures()
                record_post_copy(self.facts, self.parent)
            case do.EnsureLostEnded():
                await self._end_lost()

    def _on_failure(self, cause: Cause) -> None:
        self.observe(out.CancelRequested(cause))

    def _give_definition_away(self) -> None:
        self.observe(out.QemuCompleted())
        self.keep()  # no QEMU remembers it

    async def _start_mirrors(self) -> None:
        await self.wait_attached()
        endpoint = self._endpoint
        try:
            if endpoint is None or self._vm is None:
                await self.disks.take_up()
                return
            self.update(opened_uri=await self._open(endpoint))
            self.save()  # an agent that starts again goes on from here
            await self.disks.start(endpoint, self._vm.get_running().definition)
        except QemuGone:
            return
        except FerryError as error:
            self.observe(out.QemuGaveUp(Cause(error.text, error.reason)))

    async def _settle_mirrors(self) -> None:
        if self.facts.timeline.settling_at_s is None:
            self.update(timeline=replace(self.facts.timeline, settling_at_s=now_s()))
        await self.wait_attached()
        async with self._vcpus:  # a `cont` is answered before: no write may come after the copies were made equal
            pass
        await self.disks.settle()

    async def _start_transfer(self) -> None:
        endpoint = self._endpoint
        if self._destination is None or (endpoint is None and not self.facts.opened_uri):
            self.observe(out.QemuGaveUp(Cause("the agent was restarted before the transfer began; try again", "AGENT_RESTARTED")))
            return
        try:
            uri = self.facts.opened_uri if endpoint is None or self.facts.opened_uri else await self._open(endpoint)
            if self.facts.options.is_psk:
                await self._destination.report_channels(self.facts.migration_id, (), is_complete=False)
            if self.facts.options.pause and isinstance(self.phase, out.Connecting):
                await self.qemu.stop()
            if not isinstance(self.phase, out.Connecting):
                return
            self.update(timeline=replace(self.facts.timeline, started_at_s=now_s()))
            self.save()  # an agent that starts again has to know that QEMU may have been told
            self.guarding.tell()
            await self.qemu.migrate(uri)
        except QemuSilent as error:
            self.observe(out.CancelRequested(Cause(error.text, error.reason)))
        except QemuGone:
            return
        except FerryError as error:
            self.observe(out.QemuGaveUp(Cause(error.text, error.reason)))
        else:
            if self.facts.options.is_psk:
                with suppress(FerryError, TimeoutError):
                    await self.transfer.report_channels(self.process.pid, self._destination)

    async def _open(self, endpoint: Endpoint) -> str:
        opened_with = self.facts.options
        uri = await self.transfer.open(self.qemu, endpoint)
        if self.facts.options != opened_with:  # a client changed bounds meanwhile
            await self._apply_bounds()
        return uri

    async def _continue_migration(self) -> None:
        await self.wait_attached()
        if not isinstance(self.phase, out.Switching | out.Crossing):
            return
        if self.facts.timeline.continued_at_s is None:
            self.update(timeline=replace(self.facts.timeline, continued_at_s=now_s()))
        try:
            async with self._vcpus:
                await self.qemu.migrate_continue()
        except QemuRefused as error:
            # Also after a restart, when QEMU has left pre-switchover: its report decides.
            _log.info("migrate-continue refused", migration=self.facts.migration_id, error=error.text)

    async def _start_post_copy(self) -> None:
        await self.wait_attached()
        if not isinstance(self.phase, out.Leaving):
            return
        try:
            await self.qemu.migrate_start_postcopy()
        except QemuRefused as error:
            self.update(warnings=(*self.facts.warnings, f"post-copy was refused: {error.text}"))
            return
        if self._destination is not None and self.facts.options.is_psk and self.facts.options.post_copy.preempt:
            with suppress(FerryError, TimeoutError):  # QEMU 10.0 makes the second connection only now
                await self.transfer.report_channels(self.process.pid, self._destination)

    async def _end_lost(self) -> None:
        delay_s = RETRY_FIRST_S
        while isinstance(self.phase, out.Losing):
            try:
                if self._lock is not None and self.phase.is_kept_there:
                    await self._around.vms.drop(self._lock, kept_for=self._keeper())
                elif self._lock is not None:
                    await self._around.vms.end_lost(self._lock)
            except FerryError as error:
                self.update(waiting_for=f"the source's QEMU does not end: {error.text}")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_LAST_S)
            else:
                self.update(waiting_for="")
                self.observe(out.HuskEnded())

    async def _start_guest(self) -> None:
        """Let the guest run again; the wish is changed once it does, so that its standstill is not taken for a switch-over."""
        before_switching = out.Begun | out.Mirroring | out.Connecting | out.Transferring
        async with self._vcpus:
            if not isinstance(self.phase, before_switching):
                return
            if not self.facts.guest_was_paused:
                try:
                    await self.qemu.cont()
                except QemuRefused as error:  # QEMU has just begun to switch over
                    _log.info("cont refused", migration=self.facts.migration_id, error=error.text)
                    return
        if isinstance(self.phase, before_switching):
            timeline = replace(self.facts.timeline, stopped_at_s=None)
            self.update(options=replace(self.facts.options, pause=False), timeline=timeline)
            self.steering.change(is_allowed_at_once=False)
            self.keep()

    async def _free_guest(self) -> None:
        """Cancel; the connections of a mute QEMU are cut and yanked out of band; until QEMU says how it ended."""
        if self.facts.timeline.started_at_s is None:  # `migrate` was not sent, and is not sent in this phase
            self.observe(out.QemuGaveUp(Cause("the transfer had not begun", "CANCELLED", by_wish=True)))
            return
        await self.disks.break_connections()
        while isinstance(self.phase, out.Cancelling):
            try:
                async with asyncio.timeout(CANCEL_ANSWER_S):
                    await self.qemu.migrate_cancel()
            except QemuGone:
                return
            except (QemuSilent, WrongState, TimeoutError):  # WrongState: an agent that has just started is not attached to it
                await self.cut_and_yank()
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_PATIENCE_S):
                    await self.wait_phase(out.Keeping, out.Sent)
            if isinstance(self.phase, out.Cancelling):
                await self.cut_and_yank()
                await self._watcher.ask_qemu()

    async def cut_and_yank(self) -> None:
        """End QEMU's connections from outside; what it does not answer is left to the next turn."""
        try:
            await self.transfer.cut(self.process.pid)
        except TimeoutError:
            _log.warning("tunnel did not close the session", migration=self.facts.migration_id)
        except QemuGone:
            pass
        except FerryError as error:
            _log.warning("connection not cut", migration=self.facts.migration_id, error=error.text)
            self.update(waiting_for=error.text)
        if isinstance(self.phase, out.Cancelling | out.Crossing | out.Refused):
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(YANK_ANSWER_S):
                    await self.qemu.yank_migration()

    async def _restore_guest(self) -> None:
        delay_s = RETRY_FIRST_S
        self.guarding.tell()  # what was given away is not any more
        await self.disks.break_connections()
        while isinstance(self.phase, out.Keeping):
            try:
                if await self._is_restored():
                    await self._remove_copies()
                    self.update(waiting_for="")
                    await self._hear_destination()
                    self.observe(out.GuestRestored())
                    return
            except QemuGone:
                return
            except FerryError as error:
                self.update(waiting_for=f"the guest does not go on here yet: {error.text}")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _remove_copies(self) -> None:
        """Remove what is left of copies in QEMU, so that the next attempt finds nothing in its way.

        Raises:
            FerryError: QEMU does not let go of it.
        """
        try:
            await self.disks.remove()
        except TimeoutError as error:
            raise Expired("QEMU does not let go of the copies of its disks", reason="DISK_COPY_STUCK") from error

    async def _is_restored(self) -> bool:
        if self.facts.options.modes.offline:
            return True
        state = await self.qemu.query_status()
        if state is RunState.FINISH_MIGRATE:
            if not await self.qemu.has_migration_channels():  # else it is about to leave that by itself
                await self.giving_back.leave_finish_migrate()
            return False
        if self.facts.guest_was_paused:
            if state is RunState.POSTMIGRATE:  # QEMU 7.2, from pre-switchover on: its user could not resume it from there
                await self.qemu.cont()
                await self.qemu.stop()
            return True
        if state is RunState.RUNNING or state in OWN_STOPS:
            return True
        await self.qemu.cont()
        return await self.qemu.query_status() is RunState.RUNNING

    async def _hear_destination(self) -> None:
        """Wait a moment for the destination's own words about the failure: QEMU gives its reason there alone."""
        cause = find_cause(self.phase)
        if cause is not None and tells_all(cause):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(PEER_WORDS_S):
                while self._destination is not None and not self.facts.peer_words and not self._watcher.destination_is_over:
                    await self.wait_change()

    async def _request_resume(self) -> None:
        delay_s = RETRY_FIRST_S
        while self._is_giving_away():
            try:
                if self._destination is None:
                    raise Unreachable("the address of its agent is not known")
                ran_for_s = await self._destination.resume(
                    self.facts.migration_id, bytes.fromhex(self.facts.token), keep_paused=self.facts.stays_paused
                )
            except GuestNeverRan as error:
                self.observe(out.DestinationNeverRan(Cause(error.text, error.reason)))
                return
            except GuestLost as error:
                self.observe(out.DestinationLost(Cause(error.text, error.cause), error.is_kept))
                return
            except FerryError as error:
                self.update(waiting_for=self._waiting_text(error.text))
            else:
                line = replace(self.facts.timeline, resumed_at_s=now_s(), ran_for_s=ran_for_s)
                self.update(timeline=line, guest_ran=True, waiting_for="")
                if isinstance(self.phase, out.Sent):
                    await self._keep_figures()
                self.observe(out.ResumeAnswered())
                if isinstance(self.phase, out.HandedOver) and self.facts.timeline.post_copy_at_s is not None:
                    record_post_copy(self.facts, self.parent)
                record_transfer(self.facts, self.parent)
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    def _is_giving_away(self) -> bool:
        match self.phase:
            case out.Sent() | out.Following(is_resumed=False) | out.Broken(is_resumed=False):
                return True
            case _:
                return False

    def _waiting_text(self, why: str) -> str:
        peer = self.facts.peer or "the destination"
        rest = ""
        if not isinstance(self.phase, out.Sent):
            rest = f". Part of the guest's memory is still on {self.host_name}: end no QEMU of it"
        elif self.facts.guest_ran:
            return f"the guest goes on at {peer} without its agent, which has not answered: {why}; it is asked again and again"
        return f"the guest is stopped and given to {peer}, which has not answered: {why}; it is asked again and again{rest}"

    async def _keep_figures(self) -> None:
        """Read the final figures off QEMU, now that the guest runs at the destination."""
        with suppress(FerryError, TimeoutError):
            async with asyncio.timeout(FIGURES_TIMEOUT_S):
                report = await self.qemu.query_migrate()
                if report.status is MigrationStatus.COMPLETED:
                    timeline = replace(self.facts.timeline, qemu_downtime_ms=report.downtime_ms, qemu_total_ms=report.total_time_ms)
                    self.update(timeline=timeline, progress=progress_of(report, self.facts.progress) or self.facts.progress)

    async def _end_husk(self) -> None:
        delay_s = RETRY_FIRST_S
        await self.disks.break_connections()  # nobody serves them any more, and QEMU's end would wait for them
        while isinstance(self.phase, out.Retiring):
            try:
                if self._lock is not None:
                    await self._around.vms.drop(self._lock, kept_for=self._keeper())
            except FerryError as error:
                _log.warning("the source's QEMU does not end", migration=self.facts.migration_id, error=error.text)
                self.update(waiting_for=f"the source's QEMU does not end: {error.text}")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_LAST_S)
            else:
                await self._network_gap.wait()
                self.observe(out.HuskEnded())

    def _keeper(self) -> str:
        """Name who has the guest where the definition is to stay here."""
        keeps_definition = isinstance(self.phase, out.Retiring) and self.phase.keeps_definition
        keeps_definition |= self.facts.options.modes.keeps_source_definition
        return (self.facts.peer or "another host") if keeps_definition else ""

    async def _tidy(self) -> None:
        self.guarding.remove_note()
        newest_disks.settle(self._around.vms, self._lock, self.facts, self.phase)
        if isinstance(self.phase, out.Kept):
            if self.phase.cause.reason == newest_disks.FENCED and (told := newest_disks.fenced_text(self.facts)):
                self.update(warnings=(*self.facts.warnings, told))
            with suppress(FerryError):
                await self.transfer.tidy(self.qemu, self.process.pid)
        else:
            with suppress(FerryError, TimeoutError):
                await self.transfer.close_tunnel()
        await self._connections.aclose()
        self._destination = self._endpoint = None  # this half is kept for long, the channel and its calls need not be
