"""Bringing QEMUs up, finding them again, and telling what became of them.

The engine owns a keeper for each running VM and works on VMs that `lifecycle.Vms` hands it; it takes no job locks.
Leaving it closes the monitors and leaves every QEMU running.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import structlog

from agent.vm import argv, process
from agent.vm.cpu_shares import CpuShares
from agent.vm.display_port import find_spice_port
from agent.vm.events import Happening, Reason, VmEvents
from agent.vm.image_locks import refuse_used_images
from agent.vm.jobs import MIGRATIONS
from agent.vm.keeper import End, Keeper
from agent.vm.running import Running, read_boot_id
from agent.vm.sights import Sights
from agent.vm.taps import open_taps
from agent.vm.tpm import end_tpm, start_tpm
from agent.vm.vm import Ended, Vm
from common.errors import FerryError
from common.storage import StorageFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from uuid import UUID

    from agent.vm.definition import Definition
    from agent.vm.jobs import Job
    from agent.vm.sights import Sight

_log = structlog.get_logger()
# QEMU's reasons of SHUTDOWN. Source: qapi/run-state.json, ShutdownCause.
_GUEST_ENDED = frozenset({"guest-shutdown", "guest-reset"})
_HOST_ENDED = frozenset({"host-qmp-quit", "host-signal"})
# The keeper of a dead QEMU notices within milliseconds, or after one more attempt to connect.
NOTE_END_TIMEOUT_S = 10.0
WATCH_AGAIN_S = 5.0
AWAY = "ended while no agent was watching"


class Engine:
    """The QEMUs of one host."""

    def __init__(
        self,
        events: VmEvents,
        cpu_shares: CpuShares,
        *,
        start_timeout_s: float,
        find_job: Callable[[UUID], Job | None],
        on_end: Callable[[Vm], None],
    ) -> None:
        self._events = events
        self._cpu_shares = cpu_shares
        self._running: dict[UUID, Vm] = {}
        self._start_timeout_s = start_timeout_s
        self._find_job = find_job
        self._on_end = on_end
        self._boot_id = read_boot_id()
        self._tasks = asyncio.TaskGroup()
        self._keepers: dict[UUID, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        """Be ready to keep QEMUs."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let go of every QEMU; they run on."""
        for keeper in list(self._keepers.values()):
            keeper.cancel()
        if isinstance(error, asyncio.CancelledError):  # the group must know, in case it was the one to cancel
            await self._tasks.__aexit__(kind, error, trace)
        else:  # else the group would wrap the error
            await self._tasks.__aexit__(None, None, None)

    async def start(self, vm: Vm, definition: Definition, binary: Path, *, starts_paused: bool, migration_id: str | None) -> None:
        """Start QEMU for a VM that has none; on return it has answered.

        `definition` is pinned and has its accelerator. With a migration's id QEMU waits for that migration.

        Raises:
            QemuNotStarted: it ended or did not answer; the text is its own last word. Nothing is left of it.
            WrongState: a network device of the host was refused, or another VM uses an image, or CPU shares cannot be had.
        """
        refuse_used_images(definition, self._running.values())
        running = Running(
            definition=definition,
            argv=(),
            token=secrets.token_hex(16),
            boot_id=self._boot_id,
            process=None,
            log_offset_bytes=0,
            migration_id=migration_id,
            started_at_s=self._events.wall_clock(),
        )
        vm.directory.save_running(running.to_record())
        try:
            running = self._launch(vm, running, binary, starts_paused=starts_paused)
        except BaseException:
            self._end_shares(vm)
            vm.directory.remove_running()
            raise
        vm.running, self._running[vm.uuid] = running, vm
        vm.last_end, vm.expected_end = None, Reason.FAILED
        keeper = self._keep(vm, running)
        try:
            vm.directory.save_running(running.to_record())
            await self._wait_answering(vm, keeper)
        except BaseException:
            # Half a start is harm: it is undone even when the caller has lost interest.
            await asyncio.shield(self._tasks.create_task(self.kill(vm, Reason.FAILED)))
            raise
        vm.expected_end = None
        _log.info("vm started", vm=vm.name, uuid=str(vm.uuid), pid=keeper.identity.pid)

    def _launch(self, vm: Vm, running: Running, binary: Path, *, starts_paused: bool) -> Running:
        definition = running.definition
        vm.directory.run_dir.mkdir(mode=0o700, exist_ok=True)
        guests = vm.directory.guests
        guests.own(vm.directory.run_dir)
        spice_port = find_spice_port(definition)
        start_tpm(definition, vm.directory)
        entering = (*self._cpu_shares.begin(vm, running.token), *guests.prefix)
        with open_taps(definition) as taps:

            def build(qmp_fd: int) -> tuple[str, ...]:
                host = argv.HostSide(
                    binary=str(binary),
                    accelerator=running.accelerator,
                    qmp_fd=qmp_fd,
                    run_dir=str(vm.directory.run_dir),
                    is_incoming=running.migration_id is not None,
                    starts_paused=starts_paused,
                    spice_port=spice_port,
                    tap_fds=taps,
                )
                return (*entering, *argv.build(definition, host))

            launched = process.launch(
                build,
                vm.directory,
                token=running.token,
                passed_fds=[fd for fds in taps.values() for fd in (*fds.tap, *fds.vhost)],
            )
        _log.debug("qemu launched", vm=vm.name, pid=launched.identity.pid, argv=list(launched.argv))
        return replace(
            running,
            process=launched.identity,
            argv=launched.argv[len(entering) :],
            log_offset_bytes=launched.log_offset_bytes,
        )

    async def _wait_answering(self, vm: Vm, keeper: Keeper) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await keeper.wait_answering()
        except TimeoutError as error:
            raise process.QemuNotStarted(f"QEMU of VM {vm.name} did not answer in {self._start_timeout_s} s", vm=vm.name) from error
        except FerryError as error:
            if keeper.identity.is_alive():
                raise
            await keeper.ended.wait()
            words = vm.last_end.words or vm.last_end.detail if vm.last_end else ""
            if "Permission denied" in words and vm.directory.guests.name:
                words = f"{words} (it runs as user {vm.directory.guests.name})"
            raise process.QemuNotStarted(f"QEMU of VM {vm.name} did not start: {words}", vm=vm.name) from error

    def attach(self, vm: Vm, running: Running) -> None:
        """Take up a VM that ran when an earlier agent wrote `running`; one that is gone is noted as crashed."""
        vm.running, self._running[vm.uuid] = running, vm
        if running.process is None:
            found = process.find_launched(running.token) if running.boot_id == self._boot_id else None
            running = vm.running = replace(running, process=found)
            with storage_may_fail(vm, "its process is not on record"):
                vm.directory.save_running(running.to_record())
        identity = running.process
        if running.boot_id != self._boot_id or identity is None or not identity.is_alive():
            detail = AWAY if running.boot_id == self._boot_id else "the host was started anew"
            self._note_end(vm, Reason.CRASHED, detail)
            return
        self._keep(vm, running)
        _log.info("vm attached", vm=vm.name, uuid=str(vm.uuid), pid=identity.pid)

    async def kill(self, vm: Vm, reason: Reason) -> None:
        """Ensure that a VM's QEMU has ended, by SIGKILL, and that its end is noted with `reason`.

        Raises:
            WrongState: it hangs in the kernel.
        """
        keeper = vm.keeper
        if keeper is None:
            return
        vm.expected_end = reason
        await process.kill(keeper.identity)
        async with asyncio.timeout(NOTE_END_TIMEOUT_S):
            await keeper.ended.wait()

    async def detach(self, vm: Vm) -> None:
        """Let go of a VM's QEMU, which runs on; its monitor is closed on return, and its record is gone."""
        keeper = self._keepers.get(vm.uuid)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper], timeout=NOTE_END_TIMEOUT_S)
        vm.running, vm.keeper = None, None
        vm.directory.remove_running()
        _log.info("vm let go", vm=vm.name, uuid=str(vm.uuid))

    def _keep(self, vm: Vm, running: Running) -> Keeper:
        if running.process is None:
            raise process.QemuNotStarted(f"VM {vm.name} has no process", vm=vm.name)
        keeper = vm.keeper = Keeper(
            vm.name,
            running.process,
            running.qmp_path or vm.directory.qmp_path,
            sights=Sights(is_running=vm.live.is_running),
            on_sight=lambda sight: self._note_sight(vm, sight),
        )
        task = self._keepers[vm.uuid] = self._tasks.create_task(self._run_keeper(vm, keeper))
        task.add_done_callback(lambda ended: self._forget_keeper(vm.uuid, ended))
        return keeper

    def _forget_keeper(self, uuid: UUID, ended: asyncio.Task[None]) -> None:
        if self._keepers.get(uuid) is ended:
            del self._keepers[uuid]

    async def _run_keeper(self, vm: Vm, keeper: Keeper) -> None:
        try:
            end = await self._watch(vm, keeper)
            self._note_end(vm, *_classify(vm, end))
        except Exception:  # noqa: BLE001 - nor does an end that cannot be noted
            _log.exception("the end of a vm was not noted", vm=vm.name, pid=keeper.identity.pid)
        finally:
            keeper.ended.set()

    @staticmethod
    async def _watch(vm: Vm, keeper: Keeper) -> End:
        """Keep a QEMU until it has ended, whatever happens."""
        while True:
            try:
                return await keeper.run()
            except Exception:  # noqa: BLE001 - one VM's bug takes the agent neither from the others nor from this one
                _log.exception("vm cannot be watched, tried again", vm=vm.name, pid=keeper.identity.pid)
            await asyncio.sleep(WATCH_AGAIN_S)

    def _note_sight(self, vm: Vm, sight: Sight | None) -> None:
        is_moving = self._find_job(vm.uuid) in MIGRATIONS
        if sight is not None:
            by_move = is_moving and sight.reason in (Reason.PAUSED, Reason.UNPAUSED)
            self._events.emit(vm.uuid, vm.name, sight.happening, Reason.MIGRATED if by_move else sight.reason, sight.detail)
        if not is_moving:
            self.note_run_state(vm)

    def note_run_state(self, vm: Vm) -> None:
        """Write down whether the guest runs, so that the next agent can tell what changed; not while a guest changes hands."""
        if vm.keeper is not None and vm.live.is_running is not vm.keeper.sights.is_running:
            with storage_may_fail(vm, "whether its guest runs is not on record"):
                vm.save_live(replace(vm.live, is_running=vm.keeper.sights.is_running))

    def _end_shares(self, vm: Vm) -> None:
        group = self._cpu_shares.end(vm)
        if group is not None:
            self._tasks.create_task(self._cpu_shares.wait_removed(group))

    def _note_end(self, vm: Vm, reason: Reason, detail: str) -> None:
        running, name = vm.running, vm.name
        vm.last_definition = vm.definition
        words = "" if running is None else process.last_words(vm.directory.log_path, running.log_offset_bytes)
        vm.last_end = Ended(reason, detail, words)
        vm.running, vm.keeper, vm.expected_end = None, None, None
        end_tpm(vm.directory)
        self._running.pop(vm.uuid, None)
        self._end_shares(vm)
        with storage_may_fail(vm, "its end is not on record"):
            vm.directory.remove_running()
        said = f"{detail}: {words}" if words and reason in (Reason.CRASHED, Reason.FAILED) else detail
        self._events.emit(vm.uuid, name, Happening.STOPPED, reason, said)
        _log.info("vm stopped", vm=name, uuid=str(vm.uuid), reason=reason.value, detail=said)
        self._on_end(vm)


@contextmanager
def storage_may_fail(vm: Vm, told: str) -> Iterator[None]:
    """Go on where a record cannot be written that the next agent finds out by itself: a QEMU is watched all the same."""
    try:
        yield
    except (StorageFailed, OSError) as error:
        _log.error("record not written", vm=vm.name, uuid=str(vm.uuid), told=told, error=str(error))


def _classify(vm: Vm, end: End) -> tuple[Reason, str]:
    if vm.expected_end is not None:
        return vm.expected_end, str(end.exit)
    if end.shutdown in _GUEST_ENDED:
        return Reason.SHUTDOWN, "the guest powered off" if end.shutdown == "guest-shutdown" else "the guest rebooted"
    if end.shutdown in _HOST_ENDED:
        return Reason.DESTROYED, "QEMU was told to end, not by this agent"
    if vm.is_incoming:
        return Reason.FAILED, str(end.exit)
    return Reason.CRASHED, str(end.exit) if end.shutdown is None else f"{end.shutdown}, {end.exit}"
