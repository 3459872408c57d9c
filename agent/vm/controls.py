"""What users do to a VM that is there: pause, resume and reset its guest, say how it starts, set its tunables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.qemu.status import RunState
from agent.vm.cpu_shares import check_shares
from agent.vm.jobs import Job
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from agent.vm.cpu_shares import CpuShares
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

# Here QEMU's memory is another host's guest: it is a migration's to say whether it runs.
_NOT_OURS = frozenset({RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})
_log = structlog.get_logger()


async def pause(vms: Vms, vm: Vm) -> None:
    """Ensure that the guest's vCPUs stand still.

    Raises:
        WrongState: it does not run, or a migration decides about it.
        Busy: a job holds it; a migration is paused by its own command.
    """
    with vms.lock(vm, Job.PAUSE, ""):
        qemu = vms.qemu(vm)
        if await _own_state(vms, vm) is RunState.RUNNING:
            await qemu.stop()


async def resume(vms: Vms, vm: Vm) -> None:
    """Ensure that the guest's vCPUs run.

    Raises:
        WrongState: it does not run, or a migration decides about it, or the guest panicked and needs a reset first.
        Busy: a job holds it.
    """
    with vms.lock(vm, Job.RESUME, ""):
        qemu = vms.qemu(vm)
        if await _own_state(vms, vm) is not RunState.RUNNING:
            await qemu.cont()
            state = await qemu.query_status()
            if state is not RunState.RUNNING:
                raise WrongState(f"VM {vm.name} did not go on: it is {state.value}", reason="GUEST_STANDS_STILL", vm=vm.name)


async def reset(vms: Vms, vm: Vm) -> None:
    """Reset the guest as its reset button would; a paused one stays paused.

    Raises:
        WrongState: it does not run, or a migration decides about it.
        Busy: a job holds it.
    """
    with vms.lock(vm, Job.RESET, ""):
        qemu = vms.qemu(vm)
        await _own_state(vms, vm)
        await qemu.system_reset()


def set_autostart(vms: Vms, vm: Vm, *, autostart: bool) -> None:
    """Say whether the VM starts with its host.

    Raises:
        WrongState: it is transient.
        Busy: a job holds it.
    """
    with vms.lock(vm, Job.SET, ""):
        _check_persistent(vm, "cannot start with its host")
        vm.save_wishes(replace(vm.wishes, autostart=autostart))
        _log.info("vm autostart set", vm=vm.name, autostart=autostart)


def set_cpu_shares(vms: Vms, vm: Vm, shares: int, *, live: bool, config: bool) -> None:
    """Give the VM CPU shares: now (`live`), from its next start on (`config`), or both.

    Raises:
        InvalidRequest: neither is wished, or the number is none that this host takes.
        WrongState: `live` and it does not run, `config` and it is transient, or this host has no controller for it.
        Busy: a job holds it.
    """
    check_shares(shares)
    if not live and not config:
        raise InvalidRequest("neither live nor config: nothing to set", reason="VALUE_INVALID")
    with vms.lock(vm, Job.SET, ""):
        if config:
            _check_persistent(vm, "keeps nothing for its next start; set it live only")
        if live:
            _set_live(vms.cpu_shares, vm, shares)
        if config:
            actual = vm.live.cpu_shares if live and vm.live.cpu_shares is not None else shares
            vm.save_wishes(replace(vm.wishes, tunables=replace(vm.wishes.tunables, cpu_shares=actual)))


def _set_live(cpu_shares: CpuShares, vm: Vm, shares: int) -> None:
    vm.get_running()
    cpu_shares.set(vm, shares)


def _check_persistent(vm: Vm, why: str) -> None:
    if not vm.is_persistent:
        raise WrongState(f"VM {vm.name} is transient: it {why}", reason="VM_TRANSIENT", vm=vm.name)


async def _own_state(vms: Vms, vm: Vm) -> RunState:
    state = await vms.qemu(vm).query_status()
    if state in _NOT_OURS:
        raise WrongState(f"VM {vm.name} is {state.value}: its guest is a migration's", reason="VM_NOT_MOVABLE", vm=vm.name)
    return state
