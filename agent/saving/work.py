"""A job under way, between the one who does it and those who watch and steer it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.saving.job import State, VmJob
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.vm.jobs import JobLock


class Cancelled(WrongState):
    """The job was asked to end."""

    default_reason = "CANCELLED"


class Work:
    """One job; `job` is how it stands. It holds the VM's lock until it is over."""

    def __init__(self, job: VmJob, lock: JobLock) -> None:
        self.job = job
        self.lock = lock
        self.cancel_wished = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the state is final."""
        return self.job.state is not State.ACTIVE

    def at_step(self, step: str) -> None:
        """Begin a step of which nothing is done."""
        self._become(replace(self.job, step=step, total_bytes=0, processed_bytes=0))

    def progress(self, processed_bytes: int, total_bytes: int) -> None:
        """Tell how far this step is."""
        self._become(replace(self.job, processed_bytes=processed_bytes, total_bytes=total_bytes))

    def bound(self, bytes_per_second: int) -> None:
        """Tell the bound that holds."""
        self._become(replace(self.job, bandwidth_bytes_per_second=bytes_per_second))

    def end(self, state: State, at_s: float, *, error: str = "", reason: str = "") -> None:
        """Tell how it ended, and let others have the VM."""
        self.lock.release()
        self._become(replace(self.job, state=state, ended_at_s=at_s, error=error, reason=reason))

    def check_wanted(self) -> None:
        """Go on only while nobody wishes an end; may be called in any thread.

        Raises:
            Cancelled: somebody does.
        """
        if self.cancel_wished.is_set():
            raise Cancelled(f"the {self.job.kind.value} of VM {self.job.vm_name} was cancelled")

    def watcher(self) -> Callable[[int, int], None]:
        """Make what a thread calls with bytes done and bytes in all; it raises Cancelled once a cancel is wished."""
        loop = asyncio.get_running_loop()

        def on_block(done_bytes: int, total_bytes: int) -> None:
            self.check_wanted()
            loop.call_soon_threadsafe(self.progress, done_bytes, total_bytes)

        return on_block

    async def follow(self) -> AsyncIterator[VmJob]:
        """Yield the job as it is now and after each change, until it is over."""
        while True:
            changed, job = self._changed, self.job
            yield job
            if job.state is not State.ACTIVE:
                return
            if self.job is job:
                await changed.wait()

    async def wait_over(self) -> VmJob:
        """Return the job when it is over; has no deadline of its own."""
        async for _ in self.follow():
            pass
        return self.job

    def _become(self, job: VmJob) -> None:
        self.job = job
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
