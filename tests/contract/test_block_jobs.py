"""The tables of `agent.blockjobs.job`, and its outcomes, on real QEMUs."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.blockjobs.job import (
    TRANSITIONS,
    VERBS,
    BecameReady,
    Cancelled,
    Changed,
    Completed,
    Job,
    JobEvent,
    Outcome,
    Seen,
    Verb,
    fold,
)
from agent.qemu.block_commands import BlockCommands, Sync
from agent.qemu.block_status import JobStatus as S
from agent.qemu.block_status import job_change_of
from agent.qemu.errors import QemuRefused
from agent.qemu.subscription import Event
from tests.contract.real import real_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from agent.qemu.commands import Qemu
    from agent.qemu.subscription import Subscription

TIMEOUT_S = 10.0
SIZE_BYTES = 2 << 20
SLOW_BYTES_PER_S = 1 << 18
POLL_S = 0.02
HELD = (S.RUNNING, S.PAUSED, S.READY, S.STANDBY, S.PENDING, S.CONCLUDED)
"""The statuses that last until something is asked."""

NOT_PAUSED = "Can't resume a job that was not paused"  # said before the table is looked at


class Disks:
    """A QEMU with small disks, and a job on each."""

    def __init__(self, qemu: Qemu, notices: Subscription, directory: Path) -> None:
        self.qemu = qemu
        self._directory = directory
        self.blocks = BlockCommands(qemu.monitor)
        self._notices = notices
        self._numbers = count(1)
        self.events: list[Event] = []

    async def disk(self) -> str:
        """Open a disk that is full of data."""
        name = f"n{next(self._numbers)}"
        path = self._directory / name
        path.write_bytes(b"\x07" * SIZE_BYTES)
        await self.blocks.add_node({"node-name": name, "driver": "file", "filename": str(path)})
        return name

    async def target(self, *, fails: bool = False) -> str:
        """Open something to copy to; when it fails it does so at its first write."""
        name = f"n{next(self._numbers)}"
        options: dict[str, object] = {"driver": "null-co", "size": SIZE_BYTES}
        if fails:
            rule = {"event": "none", "iotype": "write", "errno": 28, "once": False}
            options = {"driver": "blkdebug", "image": options, "inject-error": [rule]}
        await self.blocks.add_node({"node-name": name, **options})
        return name

    async def mirror(self, *, finalizes: bool = True, slow: bool = False, fails: bool = False) -> str:
        """Start to copy a disk."""
        job, source, target = f"job{next(self._numbers)}", await self.disk(), await self.target(fails=fails)
        await self.execute(
            "blockdev-mirror",
            {
                "job-id": job,
                "device": source,
                "target": target,
                "sync": "full",
                "speed": 1 if slow else 0,
                "auto-finalize": finalizes,
                "auto-dismiss": False,
            },
        )
        return job

    async def held(self, status: S) -> str:
        """Start a job and bring it to a status that lasts."""
        job = await self.mirror(finalizes=status is not S.PENDING, slow=status in (S.RUNNING, S.PAUSED))
        match status:
            case S.RUNNING | S.READY:
                await self.wait(job, status)
            case S.PAUSED | S.STANDBY:
                await self.wait(job, S.RUNNING if status is S.PAUSED else S.READY)
                await self.execute("job-pause", {"id": job})
            case S.PENDING | S.CONCLUDED:
                await self.wait(job, S.READY)
                await self.blocks.settle_job(job)
        await self.wait(job, status)
        return job

    async def execute(self, command: str, arguments: dict[str, object]) -> None:
        await self.qemu.monitor.execute(command, arguments)

    async def ask(self, verb: Verb, job: str) -> None:
        """Ask something of a job."""
        match verb:
            case Verb.SET_SPEED:
                await self.blocks.set_job_speed(job, 0)
            case _:
                await self.execute(f"job-{verb.value}", {"id": job})

    async def takes(self, verb: Verb, job: str) -> bool:
        """Ask something, and say whether the status of the job allowed it."""
        try:
            await self.ask(verb, job)
        except QemuRefused as refusal:
            refused = f"cannot accept command verb '{verb.value}'"
            return refused not in refusal.description and NOT_PAUSED not in refusal.description
        return True

    async def forget(self, job: str) -> None:
        """End a job, wherever it is: on 10.0 each job that is left makes the start of the next one slower."""
        with suppress(QemuRefused):
            await self.blocks.abort_job(job)
        await self.wait(job, S.CONCLUDED)
        with suppress(QemuRefused):
            await self.blocks.dismiss_job(job)

    async def wait(self, job: str, status: S) -> None:
        """Wait until QEMU has told that a job has a status; events that came meanwhile are kept."""
        async with asyncio.timeout(TIMEOUT_S):
            while (job, status) not in map(job_change_of, self.events):
                notice = await anext(self._notices)
                if isinstance(notice, Event):
                    self.events.append(notice)

    def story(self, job: str) -> list[S]:
        """Give the statuses that a job went through."""
        changes = [change for event in self.events if (change := job_change_of(event)) and change[0] == job]
        return [S.UNDEFINED, *(status for _, status in changes)]

    def folded(self, job: str, *, cancel_asked: bool = False) -> Job:
        """Fold all that QEMU told of a job."""
        state = Job(job, cancel_asked=cancel_asked)
        for event in self.events:
            for told in _told(job, event):
                state = fold(state, told)
        return state

    async def seen(self, job: str, *, cancel_asked: bool = False) -> Job:
        """Fold what a query shows alone, as after a restart."""
        report = next(one for one in await self.blocks.query_jobs() if one.id == job)
        return fold(Job(job, cancel_asked=cancel_asked), Seen(report.status, report.error))


def _told(job: str, event: Event) -> list[JobEvent]:
    if change := job_change_of(event):
        return [Changed(change[1])] if change[0] == job else []
    if event.data.get("device") != job:
        return []
    match event.name:
        case "BLOCK_JOB_READY":
            return [BecameReady()]
        case "BLOCK_JOB_COMPLETED":
            return [Completed(str(event.data.get("error", "")))]
        case "BLOCK_JOB_CANCELLED":
            return [Cancelled()]
    return []


@asynccontextmanager
async def disks(binary: Path, directory: Path) -> AsyncIterator[Disks]:
    async with real_qemu(binary) as qemu:
        await qemu.cont()
        with qemu.monitor.subscribe() as notices:
            yield Disks(qemu, notices, directory)


async def _completes(disks: Disks, job: str) -> None:
    await disks.wait(job, S.READY)
    await disks.ask(Verb.COMPLETE, job)


async def _settles(disks: Disks, job: str) -> None:
    await disks.wait(job, S.READY)
    await disks.blocks.settle_job(job)


async def _cancels(disks: Disks, job: str) -> None:
    await disks.wait(job, S.READY)
    await disks.blocks.abort_job(job)


async def _cancels_early(disks: Disks, job: str) -> None:
    await disks.wait(job, S.RUNNING)
    await disks.blocks.abort_job(job)


async def _fails(disks: Disks, job: str) -> None:
    await disks.wait(job, S.ABORTING)


ENDS: dict[str, tuple[Callable[[Disks, str], Awaitable[None]], Outcome, str]] = {
    "pivots": (_completes, Outcome.COMPLETED, ""),
    "settles": (_settles, Outcome.COMPLETED, ""),
    "is cancelled": (_cancels, Outcome.CANCELLED, "Operation canceled"),
    "is cancelled early": (_cancels_early, Outcome.CANCELLED, "Operation canceled"),
    "fails": (_fails, Outcome.FAILED, "No space left on device"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_job_ends_as_its_events_and_a_query_alone_both_tell(end: str, binary: Path, tmp_path: Path):
    act, outcome, error = ENDS[end]
    async with disks(binary, tmp_path) as running:
        job = await running.mirror(slow=end == "is cancelled early", fails=end == "fails")
        await act(running, job)
        await running.wait(job, S.CONCLUDED)

        told = running.folded(job, cancel_asked=outcome is Outcome.CANCELLED)
        seen = await running.seen(job, cancel_asked=outcome is Outcome.CANCELLED)
        await running.blocks.dismiss_job(job)
        await running.wait(job, S.NULL)

        assert told.outcome is seen.outcome is outcome
        assert seen.error == error
        assert told.error == ("" if outcome is Outcome.CANCELLED else error)
        assert told.is_over
        story = running.story(job)
        assert [(before, after) for before, after in pairwise(story) if after not in TRANSITIONS[before]] == []


async def test_every_verb_is_taken_in_the_statuses_of_the_table_and_in_no_other(binary: Path, tmp_path: Path):
    async with disks(binary, tmp_path) as running:
        taken: dict[Verb, set[S]] = {verb: set() for verb in Verb}
        for status in HELD:
            for verb in Verb:
                job = await running.held(status)
                if await running.takes(verb, job):
                    taken[verb].add(status)
                await running.forget(job)

        expected = {verb: VERBS[verb] & set(HELD) for verb in Verb}
        expected[Verb.RESUME] &= {S.PAUSED, S.STANDBY}
        assert taken == expected


async def test_a_job_that_is_paused_and_goes_on_stays_within_the_table(binary: Path, tmp_path: Path):
    async with disks(binary, tmp_path) as running:
        job = await running.held(S.STANDBY)
        await running.ask(Verb.RESUME, job)
        await running.ask(Verb.PAUSE, job)
        await running.ask(Verb.CANCEL, job)
        await running.wait(job, S.CONCLUDED)

        story = running.story(job)
        assert S.STANDBY in story
        assert [(before, after) for before, after in pairwise(story) if after not in TRANSITIONS[before]] == []


async def test_a_bounded_mirror_goes_on_each_second_and_copies_no_more_at_once_than_in_one(binary: Path, tmp_path: Path):
    async with disks(binary, tmp_path) as running:
        offsets, took_s = [0], time.monotonic()
        await running.blocks.mirror(
            "job", await running.disk(), await running.target(), Sync.FULL, bytes_per_second=SLOW_BYTES_PER_S
        )
        async with asyncio.timeout(TIMEOUT_S):
            while offsets[-1] < 2 * SLOW_BYTES_PER_S:
                [job] = await running.blocks.query_block_jobs()
                offsets.append(job.offset_bytes)
                await asyncio.sleep(POLL_S)
        took_s = time.monotonic() - took_s
        await running.blocks.abort_job("job")

        assert took_s > 0.9  # the first piece moves at once
        assert max(after - before for before, after in pairwise(offsets)) <= SLOW_BYTES_PER_S
