"""Ways to end a VM's QEMU, from the kindest to the surest."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.qemu.errors import QemuGone
from agent.qemu.status import RunState
from common.errors import Expired, FerryError, WrongState

if TYPE_CHECKING:
    from agent.vm.engine import Engine
    from agent.vm.events import Reason
    from agent.vm.vm import Vm

QUIT_TIMEOUT_S = 5.0


async def power_off(vm: Vm, timeout_s: float) -> None:
    """Ask the guest to power off, and wait until its QEMU has ended.

    Raises:
        WrongState: the guest cannot hear the request.
        Expired: it has not powered off in time; it may yet.
    """
    keeper = vm.get_keeper()
    if not vm.definition.has_acpi:
        raise _deaf(vm, "has no ACPI")
    try:
        async with asyncio.timeout(timeout_s):
            with suppress(QemuGone):  # then it has powered off, or was ended by somebody else
                if await keeper.qemu.query_status() is not RunState.RUNNING:
                    raise _deaf(vm, "is paused")
                await keeper.qemu.system_powerdown()
            await keeper.ended.wait()
    except TimeoutError as error:
        raise Expired(
            f"VM {vm.name} has not powered off in {timeout_s:g} s; stop it with force",
            reason="GUEST_STILL_RUNS",
            vm=vm.name,
            timeout_s=timeout_s,
        ) from error


async def quit_qemu(vm: Vm, engine: Engine, reason: Reason) -> None:
    """Let QEMU end in order, so that its images are closed; kill one that does not."""
    keeper = vm.keeper
    if keeper is None:
        return
    vm.expected_end = reason
    with suppress(FerryError, TimeoutError):
        async with asyncio.timeout(QUIT_TIMEOUT_S):
            await keeper.qemu.quit()
            await keeper.ended.wait()
    await engine.kill(vm, reason)


def _deaf(vm: Vm, why: str) -> WrongState:
    return WrongState(
        f"VM {vm.name} {why}, so its guest cannot be asked to power off; stop it with force",
        reason="GUEST_CANNOT_POWER_OFF",
        vm=vm.name,
    )
