"""A QMP session kept up for the life of a QEMU.

The connection may be lost and come back; what QEMU says to queries is the truth, events are only news of it. So after
`Reconnected` a reader queries. Every command has a deadline, and QEMU runs a command that we stopped waiting for all
the same. When the process ends, which a pidfd tells, `Gone` is the last notice and commands raise QemuGone.

    connecting --> connected --> lost --> connected ...
         `------------+-----------+-----> gone

Whoever wants the event that a command causes subscribes before giving the command.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import structlog
from opentelemetry import trace
from qemu.qmp import ExecuteError

from agent.qemu.connection import Connection, Interrupted, NotSent, dial
from agent.qemu.errors import QemuGone, QemuInUse, QemuRefused, QemuSilent
from agent.qemu.subscription import Feed, Gone, Reconnected, Subscription

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType

    from agent.qemu.identity import Process

REPLY_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0
PROBE_INTERVAL_S: Final = 0.1

# QEMU closes its socket up to 12 ms before it ends, so a lost connection is often the first sign of an exit.
_EXIT_GRACE_S: Final = 0.1
_DRAIN_S: Final = 1.0
_FIRST_DELAY_S: Final = 0.005
_EAGER_S: Final = 0.2  # a QEMU that is being started listens after some 40 ms
_LAST_DELAY_S: Final = 0.5
_STEADY_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 2.0

_log = structlog.get_logger()
_tracer = trace.get_tracer("agent.qemu")


class Monitor:
    """A QMP session that reconnects by itself; leaving it closes the connection and leaves QEMU alone.

    It must be entered and left by the same task.

    Args:
        path: QEMU's QMP socket.
        process: the QEMU that the socket must belong to.
        vm: names the VM in spans, logs and errors.
        connect_timeout_s: for entering, and for each later attempt.
    """

    def __init__(self, path: Path, process: Process, *, vm: str, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._path = path
        self._process = process
        self._vm = vm
        self._connect_timeout_s = connect_timeout_s
        self._feed = Feed()
        self._connection: Connection | None = None
        self._last_answer_s = time.monotonic()
        self._changed = asyncio.Event()  # set while there is a connection, and for ever once the process has ended
        self._exited = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._keeper: asyncio.Task[None]
        self._watcher: asyncio.Task[None]
        self._is_redialling = False
        self._is_leaving = False

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            QemuInUse: another client holds the socket.
            QemuSilent: nobody listens, or QEMU is blocked.
            QemuGone: the process ended first.
        """
        connection = await self._redial(give_up_after_s=self._connect_timeout_s)
        # Entered last: what is raised inside a task group comes out wrapped.
        await self._tasks.__aenter__()
        self._adopt(connection)
        self._keeper = self._tasks.create_task(self._keep_connected(connection))
        self._watcher = self._tasks.create_task(self._watch_exit())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None) -> None:
        """Close the connection."""
        self._is_leaving = True
        self._watcher.cancel()
        self._release_keeper()
        # Without the error: the group would cancel the keeper, who closes the connection, halfway.
        await self._tasks.__aexit__(None, None, None)

    @property
    def vm(self) -> str:
        """The name of the VM."""
        return self._vm

    @property
    def path(self) -> Path:
        """The QMP socket."""
        return self._path

    @property
    def process(self) -> Process:
        """The QEMU process."""
        return self._process

    @property
    def peer(self) -> socket.socket | None:
        """Our end of the socket while there is a connection, for others to end it by."""
        return None if self._connection is None else self._connection.peer

    @property
    def is_connected(self) -> bool:
        """Whether a command would be sent at once."""
        return self._connection is not None and self._connection.is_open

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended."""
        return self._exited.is_set()

    @property
    def last_answer_s(self) -> float:
        """The monotonic time of QEMU's last reply to anything."""
        return self._connection.last_answer_s if self._connection is not None else self._last_answer_s

    def subscribe(self) -> AbstractContextManager[Subscription]:
        """Collect notices while the context is open; see `Subscription`."""
        return self._feed.subscribe()

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> object:
        """Run a command in QEMU's main loop and return its answer.

        Waits, within the deadline, for a lost connection to come back. A query is then asked again; anything else only
        when it had not been sent.

        Raises:
            QemuRefused: QEMU answered with an error.
            QemuSilent: no answer in time; it may have run or may yet run.
            QemuGone: the process ended.
        """
        with _tracer.start_as_current_span(f"qmp {command}", attributes={"vm": self._vm}):
            return await self._ask(command, arguments, is_oob=False, timeout_s=timeout_s)

    async def execute_with_fd(self, command: str, arguments: Mapping[str, object], fd: int) -> object:
        """Run a command that takes a descriptor, `getfd` or `add-fd`; else as execute(). The caller's copy stays open."""
        with _tracer.start_as_current_span(f"qmp {command}", attributes={"vm": self._vm}):
            return await self._ask(command, arguments, is_oob=False, timeout_s=REPLY_TIMEOUT_S, passed_fd=fd)

    async def execute_oob(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> object:
        """Run one of QEMU's few out-of-band commands, which work while its main loop is stuck; else as execute()."""
        with _tracer.start_as_current_span(f"qmp {command}", attributes={"vm": self._vm, "oob": True}):
            return await self._ask(command, arguments, is_oob=True, timeout_s=timeout_s)

    async def probe(self, *, timeout_s: float = REPLY_TIMEOUT_S) -> float:
        """Ask something cheap in QEMU's main loop, without a span; return the latency in seconds."""
        asked_s = time.monotonic()
        await self._ask("query-status", None, is_oob=False, timeout_s=timeout_s)
        return time.monotonic() - asked_s

    async def watch_mute(self, limit_s: float) -> None:
        """Return when QEMU's main loop left a probe unanswered for `limit_s`.

        Only one probe is out at a time: unanswered ones would fill QEMU's queue and bar out-of-band commands.

        Raises:
            QemuGone: the process ended.
        """
        while True:
            try:
                await self.probe(timeout_s=limit_s)
            except QemuSilent:
                return
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def wait_connected(self) -> None:
        """Return when commands can be sent; has no deadline of its own.

        Raises:
            QemuGone: the process ended.
        """
        await self._get_connection("connection")

    async def wait_exit(self) -> None:
        """Return when the process has ended; has no deadline of its own."""
        await self._exited.wait()

    async def _ask(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        *,
        is_oob: bool,
        timeout_s: float,
        passed_fd: int | None = None,
    ) -> object:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = await self._get_connection(command)
                    with suppress(NotSent, *_retried(command)):
                        return await connection.ask(command, arguments, is_oob=is_oob, passed_fd=passed_fd)
                    self._drop(connection)
        except ExecuteError as error:
            raise QemuRefused(command, error.error_class, str(error)) from error
        except Interrupted as error:
            await self._raise_if_exiting(command)
            raise QemuSilent(f"{command}: connection lost before the answer", command=command) from error
        except TimeoutError as error:
            how = "no answer" if self.is_connected else "not connected, no answer"
            raise QemuSilent(f"{command}: {how} in {timeout_s:.1f} s", command=command) from error

    async def _get_connection(self, purpose: str) -> Connection:
        while True:
            await self._changed.wait()
            if self._connection is not None:
                return self._connection
            if self._exited.is_set():
                raise self._gone(purpose)

    async def _raise_if_exiting(self, command: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_GRACE_S):
                await self._exited.wait()
                raise self._gone(command)

    def _gone(self, purpose: str) -> QemuGone:
        return QemuGone(f"{purpose}: QEMU {self._process.pid} of {self._vm} has ended", vm=self._vm)

    def _adopt(self, connection: Connection) -> None:
        self._connection = connection
        self._changed.set()

    def _drop(self, connection: Connection) -> None:
        self._last_answer_s = max(self._last_answer_s, connection.last_answer_s)
        if self._connection is connection:
            self._connection = None
            if not self._exited.is_set():
                self._changed.clear()

    async def _keep_connected(self, connection: Connection) -> None:
        """Close a lost connection and dial again, until QEMU has ended or we leave."""
        pause_s, connected_s = 0.0, time.monotonic()
        while True:
            await connection.wait_lost()
            self._drop(connection)
            await connection.close()
            if self._is_leaving or self._exited.is_set():
                return
            _log.info("qmp connection lost", vm=self._vm, pid=self._process.pid)
            self._is_redialling = True
            is_steady = time.monotonic() > connected_s + _STEADY_S
            pause_s = 0.0 if is_steady else min(2 * pause_s + _FIRST_DELAY_S, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)  # a QEMU that ends each connection at once is not to keep us busy
            connection = await self._redial(give_up_after_s=None)
            connected_s = time.monotonic()
            self._is_redialling = False
            self._adopt(connection)
            self._feed.publish(Reconnected("connection was lost"))
            _log.info("qmp connection is back", vm=self._vm, pid=self._process.pid)

    def _release_keeper(self) -> None:
        """Let the keeper end: while it dials by cancelling it, which is clean there, else by ending the connection."""
        if self._is_redialling:
            self._keeper.cancel()
        elif self._connection is not None:
            self._connection.shut_down()

    async def _redial(self, *, give_up_after_s: float | None) -> Connection:
        """Dial until it works; a refusal is ordinary while QEMU starts or serves a stale reply."""
        started_s = time.monotonic()
        delay_s = _FIRST_DELAY_S
        while True:
            left_s = min(self._connect_timeout_s, CONNECT_TIMEOUT_S)  # a new client may be greeted where the first was forgotten
            if give_up_after_s is not None:
                left_s = min(left_s, max(started_s + give_up_after_s - time.monotonic(), _FIRST_DELAY_S))
            try:
                return await dial(self._path, self._process, self._feed.publish, timeout_s=left_s)
            except (QemuSilent, QemuInUse) as error:
                if give_up_after_s is not None:
                    if not self._process.is_alive():
                        raise self._gone("connect") from error
                    if time.monotonic() + delay_s > started_s + give_up_after_s:
                        raise
                _log.debug("qmp dial failed", vm=self._vm, pid=self._process.pid, error=error.text)
            await asyncio.sleep(delay_s)
            if time.monotonic() > started_s + _EAGER_S:
                delay_s = min(2 * delay_s, _LAST_DELAY_S)

    async def _watch_exit(self) -> None:
        await self._process.wait_exit()
        self._exited.set()
        if self._connection is not None:  # its last events are still to be read
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._connection.wait_lost()
        self._release_keeper()
        self._connection = None
        self._changed.set()
        self._feed.publish(Gone())
        _log.info("qemu has ended", vm=self._vm, pid=self._process.pid)


def _retried(command: str) -> tuple[type[Interrupted], ...]:
    """Return what to ignore because the command may be given twice."""
    return (Interrupted,) if command.startswith("query-") or command == "qom-get" else ()
