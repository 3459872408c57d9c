"""One VM as the agent knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.vm.wishes import Live, Wishes
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from uuid import UUID

    from agent.qemu.monitor import Monitor
    from agent.store import VmDirectory
    from agent.vm.cpu_shares import AskedShares
    from agent.vm.definition import Definition
    from agent.vm.events import Reason
    from agent.vm.jobs import Job
    from agent.vm.keeper import Keeper
    from agent.vm.running import Running
    from agent.vm.vm_records import Problem


ATTACH_INTERVAL_S = 0.02


class VmState(Enum):
    """What a VM does now. UNKNOWN has a process that does not answer."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    INCOMING = "incoming"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last QEMU of a VM ended; `words` is its last message."""

    reason: Reason
    detail: str
    words: str


class Vm:
    """A VM: its definition, and its QEMU while it has one. Only the `Vms` that made it changes it."""

    def __init__(self, definition: Definition, directory: VmDirectory) -> None:
        self.uuid = definition.uuid
        self.directory = directory
        self.last_definition = definition
        self.persistent: Definition | None = None
        self.running: Running | None = None
        self.keeper: Keeper | None = None
        self.last_end: Ended | None = None
        self.expected_end: Reason | None = None
        self.wishes = Wishes()
        self.live = Live()
        self.asked_shares: AskedShares | None = None
        self.problems: tuple[Problem, ...] = ()
        self.has_unread_definition = False
        self.has_unread_wishes = False

    @property
    def name(self) -> str:
        """Name on this host."""
        return self.definition.name

    @property
    def definition(self) -> Definition:
        """The running definition, else that of the stopped VM; while the VM is made or removed the one it is about."""
        if self.running is not None:
            return self.running.definition
        return self.last_definition if self.persistent is None else self.persistent

    @property
    def is_persistent(self) -> bool:
        """Whether the definition stays when the VM stops."""
        return self.persistent is not None or self.has_unread_definition

    @property
    def is_incoming(self) -> bool:
        """Whether a migration is bringing the guest in."""
        return self.running is not None and self.running.migration_id is not None

    @property
    def has_saved_guest(self) -> bool:
        """Whether the next start brings a saved guest back."""
        return self.directory.saved_path.exists()

    def save_wishes(self, wishes: Wishes) -> None:
        """Change what is set beside the definition."""
        self.directory.save_wishes(wishes.to_record())
        self.wishes = wishes
        self.has_unread_wishes = False
        self.forget_problem(self.directory.wishes_path)

    def forget_problem(self, path: Path) -> None:
        """Take a record that could not be read as one that is in order again."""
        self.problems = tuple(one for one in self.problems if one.path != path)

    def save_live(self, live: Live) -> None:
        """Change what holds while the VM runs."""
        self.directory.save_live(live.to_record())
        self.live = live

    def get_running(self) -> Running:
        """Get the record of the running QEMU.

        Raises:
            WrongState: the VM does not run.
        """
        if self.running is None:
            raise WrongState(f"VM {self.name} is not running", reason="VM_NOT_RUNNING", vm=self.name)
        return self.running

    async def wait_attached(self) -> Monitor | None:
        """Return the QMP connection once QEMU has answered, or None when its process has ended; has no deadline of its own.

        An agent that has just started is not attached yet, and a mute QEMU is no dead one.
        """
        while self.keeper is not None and not self.keeper.ended.is_set():
            try:
                return self.keeper.monitor
            except WrongState:
                await asyncio.sleep(ATTACH_INTERVAL_S)
        return None

    def get_keeper(self) -> Keeper:
        """Get what keeps the running QEMU.

        Raises:
            WrongState: the VM does not run.
        """
        self.get_running()
        if self.keeper is None:
            raise WrongState(f"VM {self.name} is being started", reason="VM_NOT_RUNNING", vm=self.name)
        return self.keeper


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM as it is shown.

    Attributes:
        files: the host's ends of serial lines and consoles, and QEMU's log.
        pid: None while stopped.
        has_saved_guest: whether the next start brings a saved guest back.
        differs: whether the persistent definition is not what runs, so that the next start makes another guest.
        cpu_shares: as the kernel has them; None without.
        problems: what on record of it cannot be read, each in a sentence.
    """

    name: str
    uuid: UUID
    state: VmState
    is_persistent: bool
    job: Job | None
    migration_id: str
    pid: int | None
    definition: Definition
    argv: tuple[str, ...]
    files: Mapping[str, str]
    wishes: Wishes
    differs: bool
    has_saved_guest: bool
    cpu_shares: int | None
    problems: tuple[str, ...] = ()
