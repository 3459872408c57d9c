"""Which process a QEMU is, beyond its pid, and when it ends.

A pid alone may be reused. A pid with its start time names one process for the life of the host.
Works for processes that are not our children, as QEMU outlives the agent that started it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

# Source: proc_pid_stat(5). The command name before ')' may hold spaces, so fields count after it.
_STATE_FIELD = 0
_START_TIME_FIELD = 19
_STAT_BYTES = 4096
_DEAD_STATES = frozenset({"Z", "X", "x"})
_STOPPED_STATES = frozenset({"T", "t"})


class NoSuchProcess(NotFound):
    """No process has this pid."""

    default_reason = "NO_SUCH_PROCESS"


class Process(Protocol):
    """What the QMP layer needs to know of the process behind a socket."""

    @property
    def pid(self) -> int:
        """The pid that SO_PEERCRED of the QMP socket must say."""

    def is_alive(self) -> bool:
        """Say whether the process still runs; a zombie does not."""

    def is_stopped(self) -> bool:
        """Say whether the process is held by SIGSTOP or a debugger."""

    async def wait_exit(self) -> None:
        """Return when the process has ended."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this host since its boot.

    Attributes:
        pid: in the agent's pid namespace.
        start_time_ticks: clock ticks since boot, field 22 of /proc/PID/stat.
    """

    pid: int
    start_time_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identify the process that has `pid` now.

        Raises:
            NoSuchProcess: nobody has it.
        """
        fields = _find_stat(pid)
        if fields is None:
            raise NoSuchProcess(f"process {pid} does not exist", pid=pid)
        return cls(pid, int(fields[_START_TIME_FIELD]))

    def is_alive(self) -> bool:
        """Say whether this very process still runs; a zombie does not."""
        fields = self._find_own_stat()
        return fields is not None and fields[_STATE_FIELD] not in _DEAD_STATES

    def is_stopped(self) -> bool:
        """Say whether the process is held by SIGSTOP or a debugger."""
        fields = self._find_own_stat()
        return fields is not None and fields[_STATE_FIELD] in _STOPPED_STATES

    async def wait_exit(self) -> None:
        """Return when the process has ended, within milliseconds; has no deadline of its own."""
        with self.pidfd() as pidfd:
            if pidfd is None:
                return
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(pidfd)

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False says that it had ended already."""
        with self.pidfd() as pidfd:
            if pidfd is None:
                return False
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
                return True
            return False

    @contextmanager
    def pidfd(self) -> Iterator[int | None]:
        """Hold a pidfd of this very process, or None when it has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Checked after opening: from here on the descriptor cannot mean another process.
            yield pidfd if self.is_alive() else None
        finally:
            os.close(pidfd)

    def _find_own_stat(self) -> list[str] | None:
        fields = _find_stat(self.pid)
        if fields is None or int(fields[_START_TIME_FIELD]) != self.start_time_ticks:
            return None
        return fields


def _find_stat(pid: int) -> list[str] | None:
    try:
        stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # a guest may wait for the answer, and Path takes three times as long
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        content = os.read(stat, _STAT_BYTES)
    except ProcessLookupError:
        return None
    finally:
        os.close(stat)
    return content.rpartition(b")")[2].decode().split()
