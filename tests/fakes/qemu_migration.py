"""The migration part of the fake QEMU: which status follows which, and what the guest does meanwhile.

A deterministic model of qemu-facts "handover": a move goes on by itself, one step for each turn of the event loop,
until a status in `holds`, or while its bandwidth is below 64 KiB/s. It has no clock and no bytes. The contract suite
holds it against real QEMUs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.qemu.status import MigrationStatus as Status
from agent.qemu.status import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.qemu_network import FakeLink, FakeNetwork

MOVING = frozenset({Status.SETUP, Status.ACTIVE, Status.PRE_SWITCHOVER, Status.DEVICE, Status.CANCELLING})
SLOW_BYTES_PER_S = 65536


class Refused(Exception):
    """What the fake answers as a QMP error."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.error_class = error_class


class FakeMigration:
    """A guest, its run state, and its migration on one side."""

    def __init__(self, version: str, network: FakeNetwork, emit: Callable[..., None], *, is_incoming: bool) -> None:
        self.version = version
        self.network = network
        self.is_incoming = is_incoming
        self.run_state = RunState.INMIGRATE if is_incoming else RunState.RUNNING
        self.status = Status.NONE
        self.error_desc: str | None = None
        self.capabilities: dict[str, bool] = {}
        self.holds: set[Status] = set()
        self.has_images = not is_incoming  # whether its images are active
        self.image_is_locked = False  # by another process
        self.cancel_passes_device = False  # a race that real ones lose seldom: `device` is told before `cancelling`
        self.max_bandwidth = 1 << 40
        self.uri: str | None = None
        self.is_dead = False
        self.die: Callable[[], None] = lambda: None
        self._emit = emit
        self._peer: FakeMigration | None = None
        self._link: FakeLink | None = None
        self._is_channel_broken = False
        self._is_connecting = False
        self._starts_by_itself = False
        self._exits_on_error = True
        self._guest_ran = True
        self._pass = 0

    @property
    def is_moving(self) -> bool:
        """Whether a migration is under way, so that capabilities are fixed."""
        return self.status in MOVING and self.run_state is not RunState.INMIGRATE

    @property
    def has_channels(self) -> bool:
        """Whether there is a channel, or a connect() that has not returned."""
        return self.is_moving or self._is_connecting

    # Commands

    def migrate_incoming(self, uri: str, *, exits_on_error: bool) -> None:
        if self.run_state is not RunState.INMIGRATE:
            raise Refused("'-incoming' was not specified on the command line")
        if self.uri is not None:
            raise Refused("The incoming migration has already been started")
        self._exits_on_error = exits_on_error
        self.uri = self.network.listen(uri, self)
        if self.version != "7.2":
            self._enter(Status.SETUP)

    def migrate(self, uri: str) -> None:
        if self.status in MOVING:
            raise Refused("There's a migration process in progress")
        if self.run_state is RunState.POSTMIGRATE:
            raise Refused("Can't migrate the vm that was paused due to previous migration")
        if not uri.startswith(("tcp:", "unix:", "fd:")):
            raise Refused("Parameter 'uri' expects a valid migration protocol")
        if self._is_connecting:
            raise Refused("duplicate yank instance")
        self.uri = uri
        self._is_connecting = uri in self.network.black_holes
        self.is_incoming = False  # a destination may become a source
        self.error_desc = None
        self._pass = 0
        self._is_channel_broken = False
        self._enter(Status.SETUP)
        self._later(self._connect)

    def migrate_continue(self) -> None:
        if self.status is not Status.PRE_SWITCHOVER:
            raise Refused(f"Migration not in expected state: {self.status.value}")
        self._later(self._send_devices)

    def migrate_cancel(self) -> None:
        if self.run_state is RunState.INMIGRATE or self.status not in MOVING - {Status.CANCELLING}:
            return
        was = self.status
        if was is Status.PRE_SWITCHOVER and self.cancel_passes_device:
            self._enter(Status.DEVICE)
        self._enter(Status.CANCELLING)
        if was is Status.SETUP and self._is_connecting and self.version != "10.0":
            return  # until connect() returns
        self._later(self._end_cancel)

    def cont(self) -> None:
        match self.run_state:
            case RunState.INMIGRATE:
                self._starts_by_itself = True
            case RunState.FINISH_MIGRATE:
                raise Refused("Migration is not finalized yet")
            case RunState.RUNNING:
                pass
            case RunState.SHUTDOWN | RunState.INTERNAL_ERROR:
                raise Refused("Resetting the Virtual Machine is required")
            case _:
                self.activate_images()
                self._run()

    def stop(self) -> None:
        match self.run_state:
            case RunState.INMIGRATE:
                self._starts_by_itself = False
            case RunState.RUNNING:
                self.run_state = RunState.PAUSED
                self._emit("STOP")
            case _:
                pass  # in pre-switchover it is accepted and lost

    def activate_images(self) -> None:
        if self.image_is_locked:
            raise Refused('Failed to get "write" lock')
        self.has_images = True

    def yank(self) -> None:
        """Break the channels; without effect before they are up."""
        if self.status is not Status.SETUP:
            self.break_channel("Unable to write to socket: Bad file descriptor")

    # What a test does

    def release(self) -> None:
        """Go on from the status the move was held at."""
        self.holds.clear()
        self.go_on()

    def go_on(self) -> None:
        """Try the next step again, as something that held it may have changed."""
        steps = {Status.SETUP: self._connect, Status.ACTIVE: self._converge, Status.DEVICE: self._finish}
        if self.run_state is not RunState.INMIGRATE and self.status in steps:
            self._later(steps[self.status])

    def break_channel(self, reason: str) -> None:
        """End the connection of the migration, as a cut, a yank or the peer's death does."""
        self._is_connecting = False
        if self.run_state is RunState.INMIGRATE:
            if self.status is Status.ACTIVE:
                self._fail_load(reason)
        elif self.status is Status.PRE_SWITCHOVER:
            self._is_channel_broken = True
            self._tell_peer("load of migration failed: Input/output error")
        elif self.status is Status.CANCELLING:
            self._later(self._end_cancel)
        elif self.status in MOVING:
            self._fail(reason)

    def end(self) -> None:
        """Take part no more; the peer learns it from its socket."""
        self.is_dead = True
        self.network.listening = {uri: one for uri, one in self.network.listening.items() if one is not self}
        if self._peer is not None:
            self._peer._later(self._peer.break_channel, "Unable to write to socket: Connection reset by peer")

    # Steps

    def _connect(self) -> None:
        if self.status is not Status.SETUP or Status.SETUP in self.holds or self.uri in self.network.black_holes:
            return
        uri = self.uri or ""
        peer, link = self.network.call(uri, self)
        if peer is None or peer.is_dead:
            self._fail(f"Failed to connect to '{uri.partition(':')[2]}': Connection refused")
            return
        self._link = link
        self._peer, peer._peer = peer, self
        peer._enter(Status.ACTIVE)
        self._next_pass()
        self._enter(Status.ACTIVE)
        self._later(self._converge)

    def _converge(self) -> None:
        is_slow = self.max_bandwidth < SLOW_BYTES_PER_S or (self._link is not None and self._link.holds_data)
        if self.status is not Status.ACTIVE or Status.ACTIVE in self.holds or is_slow:
            return
        self._next_pass()
        self._guest_ran = self.run_state is RunState.RUNNING
        self.run_state = RunState.FINISH_MIGRATE
        if self._guest_ran:
            self._emit("STOP")
        if self.capabilities.get("pause-before-switchover"):
            self._enter(Status.PRE_SWITCHOVER)
        else:
            self._send_devices()

    def _send_devices(self) -> None:
        if self.status not in {Status.ACTIVE, Status.PRE_SWITCHOVER}:
            return
        self._enter(Status.DEVICE)
        self._next_pass()
        if self._is_channel_broken:
            self._fail("Unable to write to socket: Broken pipe")
        else:
            self._later(self._finish)

    def _finish(self) -> None:
        peer, link = self._peer, self._link
        if self.status is not Status.DEVICE or Status.DEVICE in self.holds or peer is None or link is None:
            return
        if not link.holds_data and peer.status is Status.ACTIVE:
            peer._load()
        if link.holds_answers or peer.status is not Status.COMPLETED:
            return
        self._enter(Status.COMPLETED)
        self._later(self._rest)
        peer._peer = None
        self._peer = None

    def _rest(self) -> None:
        self.run_state = RunState.POSTMIGRATE  # real ones too say `completed` a little earlier

    def _load(self) -> None:
        self.run_state = RunState.PAUSED
        if self._starts_by_itself:
            self._run()
        self._enter(Status.COMPLETED)

    def _end_cancel(self) -> None:
        if self.status is not Status.CANCELLING:
            return
        self._tell_peer("load of migration failed: Input/output error")
        self._take_guest_back()
        self._enter(Status.CANCELLED)

    def _fail(self, reason: str) -> None:
        self.error_desc = reason
        if self.version in {"7.2", "10.0"}:
            self._enter(Status.FAILED)
            self._take_guest_back()
        else:
            self._enter(Status.FAILING)
            self._take_guest_back()
            self._enter(Status.FAILED)
        self._tell_peer("load of migration failed: Input/output error")

    def _take_guest_back(self) -> None:
        if self.run_state is not RunState.FINISH_MIGRATE:
            return
        if self._guest_ran:
            self._run()
        else:
            self.run_state = RunState.POSTMIGRATE if self.version == "7.2" else RunState.PAUSED

    def _fail_load(self, reason: str) -> None:
        self.error_desc = reason
        self._enter(Status.FAILED)
        if self._exits_on_error:
            self.die()

    def _tell_peer(self, reason: str) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._peer = None
            peer._later(peer.break_channel, reason)

    def _next_pass(self) -> None:
        self._pass += 1
        if self._pass > 1 or self.version in {"7.2", "10.0"}:
            self._emit("MIGRATION_PASS", {"pass": self._pass})

    def _run(self) -> None:
        self.run_state = RunState.RUNNING
        self._emit("RESUME")

    def _enter(self, status: Status) -> None:
        self.status = status
        if self.capabilities.get("events"):
            self._emit("MIGRATION", {"status": status.value})

    def _later(self, step: Callable[..., None], *arguments: object) -> None:
        if not self.is_dead:
            asyncio.get_running_loop().call_soon(step, *arguments)
