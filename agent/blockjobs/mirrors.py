"""Copies of disks to another host: for each an NBD node and a mirror job on it, both of one name of ours.

The guest's writes go to both sides from the start. A copy is worth something only once it was settled while the guest stood still;
removing it before that leaves the guest's own disk as it is.

QEMU 7.2 and 10.0 corrupt their memory when such a job is aborted, or ended by an error, while a write of the guest is on its way in
it. So errors only stop our jobs, and the guest stands still for the few milliseconds in which one is aborted.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.blockjobs.job import BecameReady, Cancelled, Changed, Completed, Job, JobEvent, Outcome, Seen, fold
from agent.qemu.block_status import JobReport, JobStatus, job_change_of
from agent.qemu.errors import QemuRefused
from agent.qemu.status import RunState
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from agent.qemu.block_commands import Sync
    from agent.qemu.commands import Qemu
    from agent.qemu.subscription import Event

# A peer that says nothing freezes the guest for as long as a node waits for it.
OPEN_TIMEOUT_S: Final = 1
ADD_ANSWER_S: Final = 10.0
REMOVE_TIMEOUT_S: Final = 5.0
_LOOK_S: Final = 0.01
_STANDBY_S: Final = 0.001
_BAD: Final = (Outcome.FAILED, Outcome.CANCELLED)
_NO_SPACE: Final = "No space left on device"
_IO_ERROR: Final = "Input/output error"
_COPY: Final = re.compile(r"ferry-[0-9a-f]{10}-[0-9]+")


def copy_name(migration_id: str, index: int) -> str:
    """Name the node and the job of the copy with this number; the same again after a restart, another one for each attempt."""
    return f"ferry-{hashlib.sha256(migration_id.encode()).hexdigest()[:10]}-{index}"


def is_copy(name: str) -> bool:
    """Say whether a job or a node is the copy of a migration."""
    return _COPY.fullmatch(name) is not None


class MirrorFailed(WrongState):
    """A copy has ended before it was complete."""

    default_reason = "DISK_COPY_FAILED"


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of a disk is copied, in bytes; the total grows with what the guest writes."""

    total: int
    copied: int


class Mirrors:
    """The copies of one migration.

    Args:
        qemu: whose disks they are of.
        names: of node and job of each disk, at most 31 letters.
    """

    def __init__(self, qemu: Qemu, names: Mapping[str, str]) -> None:
        self._qemu = qemu
        self._blocks = qemu.block
        self._names = dict(names)
        self._disks = {name: disk for disk, name in names.items()}
        self._jobs = {disk: Job(name) for disk, name in names.items()}
        self._side: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._changed = asyncio.Event()
        self.amounts: dict[str, Amount] = {}

    @property
    def are_ready(self) -> bool:
        """Whether every copy is equal to its disk, and stays so."""
        return all(job.is_ready and not job.is_over for job in self._jobs.values())

    def is_ready(self, disk: str) -> bool:
        """Say whether the copy of a disk is."""
        return self._jobs[disk].is_ready

    @property
    def are_over(self) -> bool:
        """Whether QEMU works at none any more."""
        return all(job.is_over for job in self._jobs.values())

    @property
    def are_broken(self) -> bool:
        """Whether one has failed or stands still for an error; `ask` finds out why."""
        return bool(self._side or self._errors) or any(job.outcome in _BAD for job in self._jobs.values())

    def find_failure(self) -> str:
        """Say which copy has failed, and why; empty while none has."""
        for disk, job in self._jobs.items():
            if job.outcome not in _BAD and disk not in self._side and disk not in self._errors:
                continue
            where = {"read": " (reading it failed)", "write": " (writing its copy failed)"}.get(self._side.get(disk, ""), "")
            usual = "the copy was cancelled" if job.outcome is Outcome.CANCELLED else _IO_ERROR
            return f"disk {disk} could not be copied: {job.error or self._errors.get(disk) or usual}{where}"
        return ""

    async def wait_change(self) -> None:
        """Return after the next news; has no deadline of its own."""
        await self._changed.wait()

    async def add(  # noqa: PLR0913 -- what QEMU wants to know
        self, disk: str, node: str, server: Mapping[str, object], credentials: str, sync: Sync, *, bytes_per_second: int
    ) -> None:
        """Connect to the export of a disk and start to copy; whoever wants to hear of it listens before.

        Args:
            disk: its name, which is also the export's.
            node: its top node.
            server: flat address of the NBD server, as `blockdev-add` takes it.
            credentials: id of a TLS credentials object; empty is without TLS.
            sync: what is copied.
            bytes_per_second: 0 is without a bound.
        """
        name = self._names[disk]
        options: dict[str, object] = {
            "driver": "nbd",
            "node-name": name,
            "server": dict(server),
            "export": disk,
            "open-timeout": OPEN_TIMEOUT_S,
            "reconnect-delay": 0,
            "discard": "unmap",
            "detect-zeroes": "unmap",
        }
        if credentials:
            options["tls-creds"] = credentials
        await self._blocks.add_node(options, timeout_s=ADD_ANSWER_S)
        await self._blocks.mirror(name, node, name, sync, bytes_per_second=bytes_per_second, stops_on_error=True)

    def see(self, event: Event) -> None:
        """Take an event of QEMU in."""
        change = job_change_of(event)
        name = str(event.data.get("device", "")) if change is None else change[0]
        if (disk := self._disks.get(name)) is None:
            return
        match event.name:
            case "JOB_STATUS_CHANGE" if change is not None:
                self._take(disk, Changed(change[1]))
            case "BLOCK_JOB_READY":
                self._take(disk, BecameReady())
            case "BLOCK_JOB_COMPLETED":
                self._take(disk, Completed(str(event.data.get("error", ""))))
            case "BLOCK_JOB_CANCELLED":
                self._take(disk, Cancelled())
            case "BLOCK_JOB_ERROR":
                self._side[disk] = str(event.data.get("operation", ""))
                self._wake()

    async def ask(self) -> frozenset[str]:
        """Ask QEMU how the copies are, which is the truth where events were missed; return the disks that it has a job for."""
        for copy in await self._blocks.query_block_jobs():
            if copy.id in self._disks and copy.io_status != "ok":
                self._errors[self._disks[copy.id]] = _NO_SPACE if copy.io_status == "nospace" else _IO_ERROR
        return await self._ask_jobs()

    async def _ask_jobs(self) -> frozenset[str]:
        found = {report.id: report for report in await self._blocks.query_jobs() if report.id in self._disks}
        for name, report in found.items():
            self.amounts[self._disks[name]] = Amount(report.total, report.current)
            self._take(self._disks[name], Seen(report.status, report.error))
        return frozenset(self._disks[name] for name in found)

    async def set_speed(self, bytes_per_second: int) -> None:
        """Bound each copy that is not ready; 0 is without a bound."""
        for disk, job in self._jobs.items():
            if not job.is_over:
                with suppress(QemuRefused):  # it has ended meanwhile
                    await self._blocks.set_job_speed(self._names[disk], bytes_per_second)

    async def settle(self) -> None:
        """End every copy, the guest standing still; on return each disk and its copy are equal.

        Raises:
            MirrorFailed: one has failed; the others are worth nothing then either.
            FerryError: QEMU does not answer.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for job_id in self._names.values():
                    group.create_task(self._settle(job_id))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        while not self.are_over:
            if self.are_broken:
                await self.ask()
                raise MirrorFailed(self.find_failure())
            await self.wait_change()
        if await self._ask_jobs() != frozenset(self._names):
            raise MirrorFailed("QEMU knows the copy of a disk no more", reason="DISK_COPY_LOST")
        if failure := self.find_failure():
            raise MirrorFailed(failure)

    async def _settle(self, job_id: str) -> None:
        while not self._jobs[self._disks[job_id]].is_over and not self.are_broken:
            try:
                await self._blocks.settle_job(job_id)
            except QemuRefused:  # QEMU itself pauses it for a moment when it stops the guest; or it has ended
                await self.ask()
                await asyncio.sleep(_STANDBY_S)
            else:
                return

    async def break_connections(self) -> None:
        """Break the connections, out of band, so that nothing waits for the other host: copies stop, the guest does not notice."""
        if nodes := [node for node in await self._blocks.query_yankable_nodes() if node in self._disks]:
            await self._blocks.yank_nodes(nodes)

    async def remove(self) -> None:
        """Ensure that QEMU has none of our jobs and nodes.

        Raises:
            TimeoutError: QEMU does not let go of one.
            FerryError: it does not answer.
        """
        async with asyncio.timeout(REMOVE_TIMEOUT_S):
            await self.break_connections()
            if await self._find_live():
                async with _standing_still(self._qemu):
                    while live := await self._find_live():
                        await self._abort(live)
            for report in await self._find_jobs():
                await self._blocks.dismiss_job(report.id)
            while nodes := [node for node in await self._blocks.query_yankable_nodes() if node in self._disks]:
                for node in nodes:
                    with suppress(QemuRefused):
                        await self._blocks.remove_node(node)

    async def _abort(self, reports: list[JobReport]) -> None:
        for report in reports:
            with suppress(QemuRefused):  # it has ended meanwhile
                await self._blocks.abort_job(report.id)
        await asyncio.sleep(_LOOK_S)

    async def _find_live(self) -> list[JobReport]:
        return [report for report in await self._find_jobs() if report.status not in (JobStatus.CONCLUDED, JobStatus.NULL)]

    async def _find_jobs(self) -> list[JobReport]:
        return [report for report in await self._blocks.query_jobs() if report.id in self._disks]

    def _take(self, disk: str, event: JobEvent) -> None:
        self._jobs[disk] = fold(self._jobs[disk], event)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


@asynccontextmanager
async def _standing_still(qemu: Qemu) -> AsyncIterator[None]:
    """Let the guest, if it runs, stand still while the context is open, no write of it on its way."""
    runs = await qemu.query_status() is RunState.RUNNING
    if runs:
        await qemu.stop()
    try:
        yield
    finally:
        if runs:
            await qemu.cont()
