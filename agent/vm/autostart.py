"""Starting marked VMs, once for each boot of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.vm.events import Happening, Reason
from agent.vm.running import read_boot_id
from common.errors import FerryError, WrongState

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.store import Store
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

_log = structlog.get_logger()


async def start_marked(vms: Vms, store: Store, told: Callable[[Vm, FerryError | None], None]) -> None:
    """Start every marked VM that does not run, unless that was done since the host was booted; a failing one hinders no other.

    Comes after migrations have taken their VMs back: one whose guest may be on another host is busy then, and not started.
    `told` is called with each VM and what went wrong.
    """
    boot_id = read_boot_id()
    unreadable: FerryError | None = None
    try:
        if store.find_autostarted_boot() == boot_id:
            return
    except FerryError as error:  # whether its user has stopped a VM since cannot be told
        unreadable = error
    for vm in vms.all():
        if vm.wishes.autostart and vm.running is None:
            told(vm, await _start(vms, vm) if unreadable is None else _refuse(vms, vm, unreadable))
    try:
        store.save_autostarted_boot(boot_id)
    except FerryError as error:
        _log.error("autostart not on record: an agent that is started again starts marked VMs again", error=error.text)


def _refuse(vms: Vms, vm: Vm, error: FerryError) -> FerryError:
    text = f"whether it was started with its host before cannot be read, so it is left as it is: {error.text}"
    _log.error("vm not started with its host", vm=vm.name, error=text)
    vms.events.emit(vm.uuid, vm.name, Happening.AUTOSTART, Reason.FAILED, text)
    return WrongState(text, reason=error.reason)


async def _start(vms: Vms, vm: Vm) -> FerryError | None:
    try:
        await vms.start(vm)
    except FerryError as error:
        _log.error("vm not started with its host", vm=vm.name, error=error.text, reason=error.reason)
        vms.events.emit(vm.uuid, vm.name, Happening.AUTOSTART, Reason.FAILED, error.text)
        return error
    return None
