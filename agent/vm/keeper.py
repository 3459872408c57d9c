"""One running QEMU under the agent's eyes: its monitor, its run state, its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuGone
from agent.qemu.monitor import Monitor
from agent.qemu.subscription import Event, Gone, Reconnected
from agent.vm.process import Exit, reap
from agent.vm.sights import Sights
from common.errors import FerryError, WrongState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.qemu.identity import ProcessIdentity
    from agent.qemu.status import RunState
    from agent.vm.sights import Sight

QUERY_TIMEOUT_S = 2.0
RETRY_DELAY_S = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class End:
    """How a QEMU ended.

    Attributes:
        shutdown: QEMU's own reason, as `guest-shutdown`; None when it gave none.
    """

    exit: Exit
    shutdown: str | None


class Keeper:
    """Keeps the monitor of one QEMU open until the process ends; `run` does the work and owns the rest."""

    def __init__(
        self, vm_name: str, identity: ProcessIdentity, qmp_path: Path, *, sights: Sights, on_sight: Callable[[Sight | None], None]
    ) -> None:
        self.identity = identity
        self.sights = sights
        self.ended = asyncio.Event()
        self._vm_name = vm_name
        self._qmp_path = qmp_path
        self._on_sight = on_sight
        self._monitor: Monitor | None = None
        self._answered_or_over = asyncio.Event()
        self._shutdown: str | None = None

    @property
    def monitor(self) -> Monitor:
        """The QMP connection.

        Raises:
            WrongState: QEMU is not attached yet, or gone.
        """
        if self._monitor is None:
            raise WrongState(f"VM {self._vm_name}: its QEMU is not attached", reason="VM_NOT_RUNNING", vm=self._vm_name)
        return self._monitor

    @property
    def qemu(self) -> Qemu:
        """The commands of QEMU.

        Raises:
            WrongState: QEMU is not attached yet, or gone.
        """
        return Qemu(self.monitor)

    async def run(self) -> End:
        """Keep the monitor open until the process has ended, and collect it."""
        try:
            while self.identity.is_alive():
                try:
                    async with Monitor(self._qmp_path, self.identity, vm=self._vm_name) as monitor:
                        await self._follow(monitor)
                except QemuGone:
                    break
                except FerryError as error:  # silent, in use, or nothing that can be understood: it may come to its senses
                    _log.warning("qemu does not answer", vm=self._vm_name, pid=self.identity.pid, error=error.text)
                    await asyncio.sleep(RETRY_DELAY_S)
            await self.identity.wait_exit()
            return End(reap(self.identity), self._shutdown)
        finally:
            self._monitor = None
            self._answered_or_over.set()

    async def wait_answering(self) -> RunState:
        """Return QEMU's run state once it has answered; the caller sets the deadline.

        Raises:
            WrongState: it ended instead.
        """
        await self._answered_or_over.wait()
        return await self.qemu.query_status()

    async def _follow(self, monitor: Monitor) -> None:
        self._monitor = monitor
        with monitor.subscribe() as notices:
            await self._ask_run_state()
            self._answered_or_over.set()
            async for notice in notices:
                match notice:
                    case Event():
                        self._observe(notice)
                    case Reconnected():
                        await self._ask_run_state()
                    case Gone():
                        return

    def _observe(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason", ""))
        sight = self.sights.see(event)
        if sight is not None:
            self._on_sight(sight)

    async def _ask_run_state(self) -> None:
        """Catch up after events may have been lost; a QEMU that does not answer is asked again at the next loss."""
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                state = await self.qemu.query_status()
        except (FerryError, TimeoutError):
            return
        self._on_sight(self.sights.see_state(state))
