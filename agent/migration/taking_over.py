"""The destination's QEMU takes over a guest that was given to it: its images become its own, and the guest goes on as it was."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.qemu.errors import QemuRefused
from agent.qemu.status import RunState
from agent.vm.image_activation import activate_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.qemu.commands import Qemu

# Where `cont` does not lead to RUNNING: the guest came asleep, or wants a reset. QEMU 7.2 leaves its images inactive then.
_STAYS_STOPPED: Final = frozenset({RunState.SUSPENDED, RunState.SHUTDOWN, RunState.INTERNAL_ERROR})


class Goes(Enum):
    """What a guest does here now."""

    RUNS = "runs"
    STAYS_STOPPED = "stays stopped"
    NOT_YET = "not yet"


async def take_over(qemu: Qemu, vm: str, *, keep_paused: bool, has_run: Callable[[], bool]) -> Goes:
    """Let a guest go on, or with `keep_paused` make its images this QEMU's own and leave it as it came. May be repeated.

    Raises:
        ImageLocked: another process uses an image of it.
        QemuRefused: QEMU does not let it run.
    """
    if keep_paused:
        await activate_images(qemu, vm)
        return Goes.STAYS_STOPPED
    refusal: QemuRefused | None = None
    try:
        await qemu.cont()
    except QemuRefused as error:
        refusal = error
    # RESUME comes before the answer; asking is for an event that was missed.
    state = RunState.RUNNING if has_run() else await qemu.query_status()
    if state is RunState.RUNNING:
        return Goes.RUNS
    if state in _STAYS_STOPPED:
        await activate_images(qemu, vm)
        return Goes.STAYS_STOPPED
    if refusal is not None:
        raise refusal
    return Goes.NOT_YET
