"""A VM of which nothing can be read that could be served: its name, its UUID and its process stay taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import WrongState

if TYPE_CHECKING:
    from uuid import UUID

    from agent.qemu.identity import ProcessIdentity
    from agent.store import VmDirectory
    from agent.vm.vm_records import Problem

REASON = "RECORD_BROKEN"


@dataclass(frozen=True, slots=True)
class UnreadableVm:
    """A VM whose records cannot be read.

    Attributes:
        name: as far as its records tell, else its UUID.
        process: its QEMU, if one was found.
    """

    uuid: UUID
    name: str
    directory: VmDirectory
    problems: tuple[Problem, ...]
    process: ProcessIdentity | None

    @property
    def is_running(self) -> bool:
        """Whether its QEMU is there."""
        return self.process is not None and self.process.is_alive()

    @property
    def way_out(self) -> str:
        """Say what ends this state."""
        return way_out(self.name)

    def refusal(self) -> WrongState:
        """Make the refusal of what needs its definition."""
        return unreadable(self.name, self.problems)


def unreadable(name: str, problems: tuple[Problem, ...]) -> WrongState:
    """Make the refusal of what needs a record of a VM that cannot be read."""
    why = "; ".join(one.text for one in problems)
    text = f"VM {name}: not all that is on record of it can be read: {why}; {way_out(name)}"
    return WrongState(text, reason=REASON, vm=name)


def way_out(name: str) -> str:
    """Say what ends the state of a VM whose definition cannot be read."""
    return (
        "restore that file from a backup and start the agent of this host anew, or store its definition again "
        f"(ferry vm define FILE --force), or remove it (ferry vm undefine {name} --force)"
    )
