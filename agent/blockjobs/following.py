"""Following a job in QEMU to its end: events are folded, and queries tell what they have missed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.blockjobs.block_job import State, Wish
from agent.blockjobs.job import BecameReady, Cancelled, Changed, Completed, Job, JobEvent, Outcome, Seen, fold
from agent.qemu.block_status import JobStatus, job_change_of
from agent.qemu.errors import QemuGone, QemuSilent
from agent.qemu.subscription import Event, Gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.blockjobs.work import Work
    from agent.qemu.block_commands import BlockCommands
    from agent.qemu.subscription import Subscription

ASK_INTERVAL_S: Final = 0.5
_ERROR: Final = "error"


def event_of(event: Event, job_id: str) -> JobEvent | None:
    """Find what an event says of a job; None where it says nothing. Source: qapi/job.json, qapi/block-core.json."""
    change = job_change_of(event)
    if change is not None:
        return Changed(change[1]) if change[0] == job_id else None
    if event.data.get("device") != job_id:
        return None
    match event.name:
        case "BLOCK_JOB_READY":
            return BecameReady()
        case "BLOCK_JOB_COMPLETED":
            return Completed(str(event.data.get(_ERROR, "")))
        case "BLOCK_JOB_CANCELLED":
            return Cancelled()
        case _:
            return None


async def follow_job(work: Work, commands: BlockCommands, notices: Subscription, on_ready: Callable[[], None]) -> Job:
    """Follow a job until QEMU does nothing for it any more; one that QEMU does not know is over at once, without an outcome.

    Raises:
        QemuGone: QEMU ended.
        FerryError: it cannot be followed.
    """
    job = Job(work.record.qemu_id)
    job = await _ask(work, commands, job)
    while not job.is_over:
        if job.is_ready and work.job.state is State.ACTIVE:
            work.become(replace(work.job, state=State.READY))
            on_ready()
            await _act(work, commands)
        job = replace(job, cancel_asked=work.record.wish is Wish.ABORT)
        job = await _hear(work, commands, notices, job)
    return await _ask(work, commands, replace(job, cancel_asked=work.record.wish is Wish.ABORT))


async def _act(work: Work, commands: BlockCommands) -> None:
    """Do what was wished for the moment when it is ready; of an earlier agent's wish nobody knows whether QEMU was told."""
    record = work.record
    if record.wish is Wish.NONE and record.pivots_when_ready:
        work.note(replace(record, wish=Wish.PIVOT))
    match work.record.wish:
        case Wish.PIVOT:
            await commands.complete_job(record.qemu_id)
        case Wish.KEEP:
            await commands.settle_job(record.qemu_id)
        case Wish.ABORT:
            await commands.abort_job(record.qemu_id)
        case Wish.NONE:
            pass


async def _hear(work: Work, commands: BlockCommands, notices: Subscription, job: Job) -> Job:
    try:
        async with asyncio.timeout(ASK_INTERVAL_S):
            notice = await anext(notices)
    except TimeoutError:
        return await _ask(work, commands, job)
    match notice:
        case Event():
            event = event_of(notice, job.id)
            return job if event is None else fold(job, event)
        case Gone():
            raise QemuGone(f"{work.record.named()}: QEMU has ended", vm=work.record.vm_name)
        case _:
            return await _ask(work, commands, job)


async def _ask(work: Work, commands: BlockCommands, job: Job) -> Job:
    """Let QEMU say where the job stands; while it says nothing, nothing is known to have changed."""
    try:
        jobs = await commands.query_jobs()
    except QemuSilent:
        return job
    found = next((one for one in jobs if one.id == job.id), None)
    if found is None:
        return replace(job, status=JobStatus.NULL)
    work.become(
        replace(work.job, status=found.status.value, processed_bytes=found.current, total_bytes=max(found.total, found.current))
    )
    return fold(job, Seen(found.status, found.error))


def state_of(job: Job) -> str:
    """Say how a job ended, for its record; empty where QEMU told nothing."""
    match job.outcome:
        case Outcome.COMPLETED:
            return State.COMPLETED.value
        case Outcome.FAILED:
            return State.FAILED.value
        case Outcome.CANCELLED:
            return State.CANCELLED.value
        case _:
            return ""
