"""CPU shares of running VMs: a cgroup for each VM that has some, and for no other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from agent.cgroup.detect import open_hierarchy
from agent.cgroup.group import Group, Hierarchy, Version, convert
from agent.vm.events import Reason
from agent.vm.wishes import Live
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

    from agent.vm.definition import Definition
    from agent.vm.events import VmEvents
    from agent.vm.vm import Vm

MAX_SHARES = 2**31 - 1
REMOVE_TRIES = 50
REMOVE_INTERVAL_S = 0.02
_TOKEN_LENGTH = 8
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AskedShares:
    """Shares that a VM is to be started with; `cgroup` is the interface that they are of, None this host's."""

    shares: int
    cgroup: Version | None = None


def check_shares(shares: int) -> None:
    """Refuse what no kernel takes.

    Raises:
        InvalidRequest: it is not a positive number of 31 bits.
    """
    if not 0 < shares <= MAX_SHARES:
        raise InvalidRequest(
            f"cpu shares {shares}: 2 to 262144 (cgroup v1) or 1 to 10000 (v2) are wanted",
            reason="SHARES_OUT_OF_RANGE",
            shares=shares,
        )


def find_asked(vm: Vm, definition: Definition) -> AskedShares | None:
    """Return the shares that a VM starts with: those that were set, else those of its definition."""
    shares = vm.wishes.tunables.cpu_shares or definition.cpu_shares
    return None if shares is None else AskedShares(shares)


def read_shares(shares: int | None, cgroup: str) -> AskedShares | None:
    """Read what another host tells of a guest's shares.

    Raises:
        InvalidRequest: they are none.
    """
    if shares is None:
        return None
    check_shares(shares)
    if cgroup not in {version.value for version in Version}:
        raise InvalidRequest(f"cpu shares of cgroup {cgroup[:20]!r}: v1 or v2 is wanted", reason="VALUE_INVALID")
    return AskedShares(shares, Version(cgroup))


class CpuShares:
    """The groups of one host's VMs."""

    def __init__(self, events: VmEvents, root: Path | None) -> None:
        self._events = events
        self._root = root

    def begin(self, vm: Vm, token: str) -> tuple[str, ...]:
        """Make the group of a VM that is about to be started, if shares are asked for.

        Returns the words that put QEMU into it, before QEMU's own.

        Raises:
            WrongState: this host has no such controller, or the group cannot be made.
            InvalidRequest: the kernel refuses the number.
        """
        vm.live = Live()
        if vm.asked_shares is None:
            return ()
        hierarchy = open_hierarchy(self._root)
        asked = vm.asked_shares.shares
        wanted = convert(asked, vm.asked_shares.cgroup or hierarchy.version, hierarchy.version)
        group = self._make(vm, hierarchy, token)
        self._note(vm, group.set_shares(wanted), wanted, Reason.CONVERTED if wanted != asked else None)
        return group.entering()

    def set(self, vm: Vm, shares: int) -> None:
        """Give a running VM other shares; one without a group gets one.

        Raises:
            WrongState: it does not run, or this host has no such controller, or the group cannot be made.
            InvalidRequest: the kernel refuses the number.
        """
        running = vm.get_running()
        group = self._find(vm)
        if group is None:
            group = self._make(vm, open_hierarchy(self._root), running.token)
            self._note(vm, group.set_shares(shares), shares, Reason.UPDATED)
            if running.process is not None:
                group.add(running.process.pid)
        else:
            self._note(vm, group.set_shares(shares), shares, Reason.UPDATED)

    def end(self, vm: Vm) -> Group | None:
        """Remove the group of a VM whose QEMU has ended; returns the group if that takes a moment, for `wait_removed`."""
        group, vm.live = self._find(vm), Live()
        return None if group is None or group.remove() else group

    async def wait_removed(self, group: Group) -> None:
        """Remove a group that the kernel has not emptied yet."""
        for _ in range(REMOVE_TRIES):
            await asyncio.sleep(REMOVE_INTERVAL_S)
            if group.remove():
                return
        _log.warning("cgroup is left", path=str(group.path))

    def _find(self, vm: Vm) -> Group | None:
        live = vm.live
        return None if live.group is None or live.cgroup is None else Group(live.cgroup, live.group)

    def _make(self, vm: Vm, hierarchy: Hierarchy, token: str) -> Group:
        group = hierarchy.group(f"{vm.uuid}.{token[:_TOKEN_LENGTH]}")
        hierarchy.make_parent()
        vm.save_live(replace(vm.live, cgroup=group.version, group=group.path))  # before it is there, so that it is never forgotten
        group.make()
        return group

    def _note(self, vm: Vm, actual: int, wanted: int, reason: Reason | None) -> None:
        vm.save_live(replace(vm.live, cpu_shares=actual))
        if actual != wanted:
            reason = Reason.CLAMPED
            _log.warning("cpu shares clamped by the kernel", vm=vm.name, wanted=wanted, actual=actual)
        if reason is not None:
            self._events.emit_tunable(vm.uuid, vm.name, reason, {"cpu_shares": actual})
