"""The server processes of a fleet, and the end of everything that a fleet has started.

Every process of a fleet, each QEMU too, has its output in a file of the fleet's directory. That is how they are found
again, by whoever knows the directory; they are ended by a pidfd, so that never another process is meant.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STOP_TIMEOUT_S = 10.0
_LOG_TAIL_LINES = 12


class ProcessFailed(Exception):
    """A server did not do what was expected of it; the text ends with its last words."""


class ServerProcess:
    """One server: started, stopped, killed and started again with the same command line."""

    def __init__(self, name: str, argv: Sequence[str], log_path: Path, *, environment: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._argv = tuple(argv)
        self._environment = dict(environment)
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises:
            ProcessFailed: it does not run.
        """
        if self._child is None or self._child.poll() is not None:
            raise ProcessFailed(f"{self.name} does not run; {self.last_words()}")
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C in the terminal is not for it."""
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, as SIGSTOP or SIGCONT."""
        os.kill(self.pid, number)

    def ask_to_end(self) -> None:
        """Send SIGTERM if it runs, and do not wait; a stopped one is continued, so that it hears it."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        self.ask_to_end()
        if self._child is None:
            return
        if self._child.poll() is None:
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()

    def kill(self) -> None:
        """End it at once with SIGKILL."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def last_words(self) -> str:
        """Give the end of its log."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "it has written no log"
        return "\n  ".join([f"the end of {self.log_path}:", *lines[-_LOG_TAIL_LINES:]])


def processes_of(directory: Path) -> tuple[int, ...]:
    """Find the processes, but for this one, whose output lies below a fleet's directory."""
    return tuple(pid for pid in _pids() if pid != os.getpid() and _writes_below(pid, directory.resolve()))


def end_processes_of(directory: Path) -> int:
    """Kill the processes of a fleet and wait for their end; say how many there were."""
    ended = 0
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    # A server that is killed may have started another one just before.
    while (pids := processes_of(directory)) and time.monotonic() < deadline_s:
        for pid in pids:
            ended += _end(pid, directory.resolve(), deadline_s)
    return ended


def _end(pid: int, directory: Path, deadline_s: float) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _writes_below(pid, directory):  # the number was given to another process meanwhile
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], max(0.0, deadline_s - time.monotonic()))
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    finally:
        os.close(pidfd)
    return True


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            yield int(entry.name)


def _writes_below(pid: int, directory: Path) -> bool:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/fd/{descriptor}").readlink().is_relative_to(directory):
                return True
    return False
