"""How what QEMU does by itself has ended, why a QEMU has ended, or why its guest stands still, in words. Pure.

Source: qapi/run-state.json, `ShutdownCause`, `RunState` and events; qapi/block-core.json, BLOCK_IO_ERROR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.qemu.status import MigrationStatus, RunState

if TYPE_CHECKING:
    from agent.qemu.subscription import Event


@dataclass(frozen=True, slots=True)
class Ending:
    """How something came to its end.

    Attributes:
        text: one line for people.
        reason: stable UPPER_SNAKE word for programs.
        is_guests: whether the guest itself did it, so that nothing of it is missed.
    """

    text: str
    reason: str
    is_guests: bool = False


@dataclass(frozen=True, slots=True)
class DiskError:
    """A request of the guest that failed.

    Attributes:
        node: what it was made to: the top node of a disk, or one that a job has put before it, which begins with `#`.
        stops: whether QEMU stops the guest for it; else the guest is told.
    """

    node: str
    operation: str
    why: str
    stops: bool

    def named(self, disk: str = "") -> str:
        """Say it in words; without a name from whoever knows the disks, by a name that people gave."""
        return f"{self.operation} on {disk or ('a disk' if self.node.startswith('#') else self.node)}: {self.why}"


_EXITS: Final = {
    "guest-shutdown": Ending("the guest powered itself off", "GUEST_SHUT_DOWN", is_guests=True),
    "guest-reset": Ending("the guest rebooted, at which its QEMU ends", "GUEST_SHUT_DOWN", is_guests=True),
    "guest-panic": Ending("the guest panicked, at which its QEMU ends", "GUEST_PANICKED", is_guests=True),
    "host-qmp-quit": Ending("the guest's QEMU was told to quit", "QEMU_ENDED"),
    "host-signal": Ending("the guest's QEMU was ended by a signal", "QEMU_ENDED"),
}
_STOPS: Final = {
    RunState.IO_ERROR: Ending("the guest had an I/O error", "GUEST_IO_ERROR", is_guests=True),
    RunState.GUEST_PANICKED: Ending("the guest panicked", "GUEST_PANICKED", is_guests=True),
    RunState.SHUTDOWN: Ending("the guest powered itself off", "GUEST_SHUT_DOWN", is_guests=True),
    RunState.WATCHDOG: Ending("the guest's watchdog ran out", "GUEST_WATCHDOG", is_guests=True),
    RunState.INTERNAL_ERROR: Ending("the guest's CPU met an error", "GUEST_CPU_ERROR", is_guests=True),
}
GUEST_ENDS: Final = frozenset(ending.reason for ending in _EXITS.values() if ending.is_guests)
"""The reasons of QEMUs that ended by what their guests did."""
STOP_REASONS: Final = frozenset(ending.reason for ending in _STOPS.values())
"""The reasons of guests that stand still by themselves."""
OWN_STOPS: Final = frozenset(_STOPS)
"""Run states in which `cont` has no sense: the guest did not stand still because of us."""
_REMEDIES: Final = {
    RunState.IO_ERROR: "mend what its disk stands on, then: ferry vm resume",
    RunState.GUEST_PANICKED: "look at its console, then: ferry vm reset",
}
_OTHER_REMEDY: Final = "look at its console; ferry vm reset or ferry vm stop --force ends it:"


def of_status(status: MigrationStatus, why: str, *, what: str) -> Ending | None:
    """Say how a migration of QEMU's, whatever it serves, has ended; None while it goes on.

    Args:
        status: of QEMU's migration.
        why: QEMU's own words; empty when it has none.
        what: what it serves, as `the transfer to host-b`.
    """
    match status:
        case MigrationStatus.COMPLETED:
            return Ending(f"{what} is complete", "COMPLETED")
        case MigrationStatus.CANCELLED:
            return Ending(f"{what} was cancelled", "CANCELLED")
        case MigrationStatus.FAILED:
            return Ending(f"{what} failed{': ' if why else ''}{why}", "TRANSFER_FAILED")
        case MigrationStatus.NONE:
            return Ending(f"{what} is not active", "NOT_ACTIVE")
        case _:
            return None


def of_exit(shutdown: str, words: str, *, during: str, where: str = "") -> Ending:
    """Say why a QEMU ended.

    Args:
        shutdown: the reason of its SHUTDOWN event; empty when there was none.
        words: what it said last.
        during: what was being done with it, as `migration`.
        where: the host, or which of two QEMUs it was; empty where that is known.
    """
    known = _EXITS.get(shutdown)
    place = f" on {where}" if where else ""
    if known is None:
        said = f": {words}" if words else ""
        return Ending(f"the guest's QEMU{place} ended unexpectedly during the {during}{said}", "QEMU_ENDED")
    return Ending(f"{known.text},{place} during the {during}", known.reason, known.is_guests)


def of_stop(state: RunState, detail: str, *, during: str, where: str, vm: str) -> Ending | None:
    """Say why a guest stands still by itself; None when it does not."""
    known = _STOPS.get(state)
    if known is None:
        return None
    said = f" ({detail})" if detail else ""
    remedy = f"{_REMEDIES.get(state, _OTHER_REMEDY)} {vm}"
    text = f"{known.text}{said} during the {during} and stands still on {where}: {remedy}"
    return Ending(text, known.reason, known.is_guests)


def stop_of(event: Event) -> tuple[RunState, str] | None:
    """Find the run state, and its details, that QEMU puts a guest into right after this event, for a reason of the guest's own."""
    match event.name:
        case "BLOCK_IO_ERROR" if (error := disk_error_of(event)) is not None and error.stops:
            return RunState.IO_ERROR, error.named()
        case "GUEST_PANICKED" if event.data.get("action") == "pause":
            return RunState.GUEST_PANICKED, ""
        case "WATCHDOG" if event.data.get("action") == "pause":
            return RunState.WATCHDOG, ""
    return None


def disk_error_of(event: Event) -> DiskError | None:
    """Find the request of the guest that failed, if the event tells of one that QEMU does not pass over."""
    if event.name != "BLOCK_IO_ERROR" or event.data.get("action") == "ignore":
        return None
    data = event.data
    node = str(data.get("node-name") or data.get("device") or "a disk")
    why = str(data.get("reason", "no reason given"))
    return DiskError(node, str(data.get("operation", "access")), why, stops=data.get("action") == "stop")


def refusal_of(state: RunState, vm: str) -> str:
    """Say why a guest in this state cannot be moved."""
    known = _STOPS.get(state)
    if known is None:
        return f"VM {vm} is {state.value}: it cannot be moved"
    return f"VM {vm} cannot be moved: {known.text} and stands still: {_REMEDIES.get(state, _OTHER_REMEDY)} {vm}"


def reset_of(event: Event) -> str:
    """Say that a guest began anew, if the event does."""
    if event.name != "RESET":
        return ""
    return f"the guest {'rebooted' if event.data.get('guest') is True else 'was reset'} during the migration, which went on"
