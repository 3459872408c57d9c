"""Looking at a QEMU that somebody started, without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.qemu.commands import Qemu
from agent.qemu.monitor import Monitor
from agent.vm.adoption.facts import ask_facts
from agent.vm.adoption.found import find_process, look_at
from agent.vm.adoption.plan import AdoptionPlan, plan_adoption
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.vm.vm import Vm

CONNECT_TIMEOUT_S: Final = 2.0


async def survey(path: Path, name: str, known: Iterable[Vm]) -> AdoptionPlan:
    """Find the QEMU behind a QMP socket and plan its adoption; `known` are the VMs that the agent has.

    Raises:
        FerryError: there is no QEMU that could be adopted; the text says why.
    """
    running = [(vm.name, vm.running) for vm in known if vm.running is not None]
    _refuse_known([name for name, ran in running if ran.qmp_path == path], path)
    identity = await find_process(path)
    _refuse_known([name for name, ran in running if ran.process == identity], path)
    async with Monitor(path, identity, vm=name or path.name, connect_timeout_s=CONNECT_TIMEOUT_S) as monitor:
        facts = await ask_facts(Qemu(monitor))
    return plan_adoption(look_at(identity), facts, name)


def _refuse_known(names: list[str], path: Path) -> None:
    if names:
        raise WrongState(f"the QEMU at {path} is VM {names[0]} of this host already", reason="VM_EXISTS", vm=names[0])
