"""Describing a VM; what it does is asked of QEMU, not remembered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.qemu.status import RunState
from agent.vm.events import Reason
from agent.vm.host_files import lines
from agent.vm.jobs import MIGRATIONS
from agent.vm.vm import VmState, VmView
from common.errors import FerryError

if TYPE_CHECKING:
    from agent.vm.jobs import JobLock
    from agent.vm.vm import Vm

ANSWER_TIMEOUT_S = 1.0


async def view_vm(vm: Vm, lock: JobLock | None) -> VmView:
    """Describe a VM within about a second, even if its QEMU is mute."""
    # Questions that a starved QEMU does not answer would fill its queue, and bar the command that helps it.
    state = VmState.RUNNING if lock is not None and lock.is_starved else await _find_state(vm)
    running = vm.running
    process = None if running is None else running.process
    return VmView(
        name=vm.name,
        uuid=vm.uuid,
        state=state,
        is_persistent=vm.is_persistent,
        job=None if lock is None else lock.job,
        migration_id=lock.holder_id if lock is not None and lock.job in MIGRATIONS else "",
        pid=None if process is None else process.pid,
        definition=vm.definition,
        argv=() if running is None else running.argv,
        files=_files(vm),
        wishes=vm.wishes,
        differs=differs(vm),
        has_saved_guest=vm.has_saved_guest,
        cpu_shares=vm.live.cpu_shares,
        problems=tuple(one.text for one in vm.problems),
    )


def differs(vm: Vm) -> bool:
    """Say whether the stored definition is another one than that of the running guest."""
    if vm.running is None or vm.persistent is None:
        return False
    return replace(vm.running.definition, accelerator=None) != vm.persistent


async def _find_state(vm: Vm) -> VmState:
    if vm.keeper is None and vm.problems:
        return VmState.UNKNOWN
    if vm.keeper is None:
        crashed = vm.last_end is not None and vm.last_end.reason is Reason.CRASHED
        return VmState.CRASHED if crashed else VmState.STOPPED
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            state = await vm.keeper.wait_answering()
    except (FerryError, TimeoutError):
        return VmState.UNKNOWN
    if state is RunState.RUNNING:
        return VmState.RUNNING
    if state is RunState.INMIGRATE or vm.is_incoming:
        return VmState.INCOMING
    return VmState.PAUSED


def _files(vm: Vm) -> dict[str, str]:
    return {"log": str(vm.directory.log_path), **lines(vm.definition, vm.directory.run_dir)}
