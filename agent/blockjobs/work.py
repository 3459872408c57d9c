"""A job on a disk under way, between the one who follows it in QEMU and those who watch and steer it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.blockjobs.block_job import BlockJob, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.blockjobs.block_job import BlockJobRecord, BlockJobRecords
    from agent.vm.jobs import DiskLock
    from agent.vm.vm import Vm


class Work:
    """One job; `job` is how it stands, `record` what is on record of it. It holds its disk until it is over."""

    def __init__(self, record: BlockJobRecord, vm: Vm, lock: DiskLock, records: BlockJobRecords) -> None:
        self.vm = vm
        self.lock = lock
        self.job = BlockJob(record, record.before[0].path)
        self.begun = asyncio.Event()
        self.failure: Exception | None = None
        self._records = records
        self._changed = asyncio.Event()

    @property
    def record(self) -> BlockJobRecord:
        """What is on record."""
        return self.job.record

    def note(self, record: BlockJobRecord) -> None:
        """Put the record on disk; durable on return.

        Raises:
            StorageFailed: the file system refused; the earlier record stays.
        """
        self._records.save(record)
        self.become(replace(self.job, record=record))

    def forget(self) -> None:
        """Take it off the record."""
        self._records.remove(self.record.id)

    def become(self, job: BlockJob) -> None:
        """Change how it stands, and wake the watchers."""
        if job != self.job:
            self.job = job
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def follow(self, *, until_ready: bool = False) -> AsyncIterator[BlockJob]:
        """Yield the job as it is now and after each change, until it is over, undecided, or with `until_ready` ready."""
        while True:
            changed, job = self._changed, self.job
            yield job
            if job.is_over or job.state is State.UNDECIDED or (until_ready and job.state is State.READY):
                return
            if self.job is job:
                await changed.wait()

    async def wait_over(self) -> BlockJob:
        """Return the job when it is over; has no deadline of its own."""
        async for _ in self.follow():
            pass
        return self.job
