"""Images of a guest that stands still after it came: QEMU leaves them inactive until it runs, here they are activated without that.

An inactive image has no lock and cannot be written. QEMU 7.2 ends in an assertion when such a guest is to be moved or saved, newer
ones refuse work on its disks. To let the guest run and stop it at once would let it run for some milliseconds.

To be called only where the guest is this QEMU's: the source of a migration has given it away, or there was none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.qemu.errors import QemuRefused
from agent.qemu.status import RunState
from common.errors import WrongState

if TYPE_CHECKING:
    from agent.qemu.commands import Qemu

# Here QEMU's images are, or are about to be, another host's.
_NOT_OURS: Final = frozenset({RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})
_UNKNOWN_COMMAND: Final = "CommandNotFound"


class ImageLocked(WrongState):
    """Another process holds the lock of an image that a guest needs."""

    default_reason = "IMAGE_LOCKED"


async def ensure_own_images(qemu: Qemu, vm: str) -> None:
    """Make the images of a guest that stands still its own, without executing an instruction of it. Nothing to do where they are.

    Raises:
        ImageLocked: another process uses one; the guest is as it was.
    """
    state = await qemu.query_status()
    if state is not RunState.RUNNING and state not in _NOT_OURS:
        await activate_images(qemu, vm)


async def activate_images(qemu: Qemu, vm: str) -> None:
    """Make the images of a guest its own.

    Raises:
        ImageLocked: another process uses one.
    """
    try:
        await qemu.block.activate_all()
    except QemuRefused as error:
        if error.error_class != _UNKNOWN_COMMAND:
            raise _locked(vm, await _find_inactive(qemu), error.description) from error
        for node in (await qemu.block.query_graph()).roots():
            await qemu.block.activate_node(node)
    if inactive := await _find_inactive(qemu):
        raise _locked(vm, inactive, "")


async def _find_inactive(qemu: Qemu) -> tuple[str, ...]:
    """Find the images that devices of the guest cannot use, by their files."""
    unclaimed = (await qemu.block.query_graph()).unclaimed()
    drives = [drive for drive in await qemu.block.query_drives() if drive.device and drive.node in unclaimed]
    inactive = [drive for drive in drives if not (drive.is_read_only and await qemu.shares_writes(drive.device))]
    return tuple(drive.node if drive.image is None else drive.image.filename for drive in inactive)


def _locked(vm: str, inactive: tuple[str, ...], why: str) -> ImageLocked:
    images = ", ".join(inactive) or "an image"
    said = f" ({why})" if why else ""
    return ImageLocked(
        f"VM {vm}: its guest cannot use {images}{said}: another process holds its lock, "
        "on this host or another one; end that process and try again",
        vm=vm,
        images=images,
    )
