"""CPU shares of a real QEMU in a real cgroup v1, where this machine has one."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from agent.cgroup.detect import find
from agent.cgroup.group import Version
from agent.vm import controls
from agent.vm.cpu_shares import AskedShares
from agent.vm.settings import VmSettings
from agent.vm.stored import Stored
from agent.vm.vm import Vm
from agent.vm.wishes import Tunables, Wishes
from common.errors import InvalidRequest, WrongState
from tests.binaries import BINARIES, MOSTLY_OLDER
from tests.e2e.waiting import until
from tests.qemu.vms import agent, guest_xml, running_definition, stop_all

UUID_1 = UUID("31111111-0000-0000-0000-000000000001")


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a cgroup of this test alone; afterwards no group may be left in it."""
    found = find(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if found is None or found.version is not Version.V1 or not os.access(found.base, os.W_OK):
        pytest.skip("this machine has no cgroup v1 with cpu that may be written")
    directory = Path(tempfile.mkdtemp(prefix="ferry-test-", dir=found.base))
    yield directory
    for path in (directory / "ferry", directory):
        if path.exists():
            path.rmdir()


def groups_of_tasks(pid: int) -> set[str]:
    lines = [line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "cgroup").read_text().splitlines()]
    return {line.split(":", 2)[2] for line in lines if "cpu" in line.split(":")[1].split(",")}


def pid_of(vm: Vm) -> int:
    process = vm.get_running().process
    assert process is not None
    return process.pid


def ask(vm: Vm, shares: int) -> None:
    vm.save_wishes(Wishes(tunables=Tunables(cpu_shares=shares)))


@pytest.mark.parametrize("version", MOSTLY_OLDER)
async def test_a_vm_starts_with_its_shares_all_threads_in_the_group_until_it_ends(place: Path, root: Path, version: str) -> None:
    async with agent(place / "s", VmSettings(qemu=str(BINARIES[version]), cgroup_root=root)) as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        ask(vm, 512)
        await vms.start(vm)
        group = vm.live.group
        assert group is not None

        inside = groups_of_tasks(pid_of(vm))
        shares, argv = (group / "cpu.shares").read_text(), vm.get_running().argv
        await stop_all(vms)

        assert [path.rpartition("/")[2] for path in inside] == [group.name]
        assert group.parent == root / "ferry"
        assert int(shares) == 512
        assert argv[0] == str(BINARIES[version])
        await wait_gone(group)


async def wait_gone(group: Path) -> None:
    await until(lambda: not group.exists(), f"no cgroup {group}")


async def test_what_the_kernel_clamped_is_told_and_kept(place: Path, root: Path) -> None:
    async with agent(place / "s", VmSettings(cgroup_root=root)) as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        ask(vm, 1)
        await vms.start(vm)
        at_start = (await vms.view(vm)).cpu_shares

        controls.set_cpu_shares(vms, vm, 300_000, live=True, config=True)
        view = await vms.view(vm)
        await stop_all(vms)

        assert (at_start, view.cpu_shares, view.wishes.tunables.cpu_shares) == (2, 262144, 262144)
        tunings = [(event.reason.value, dict(event.tunables)) for event in vms.events.after(0) if event.tunables]
        assert tunings == [("CLAMPED", {"cpu_shares": 2}), ("CLAMPED", {"cpu_shares": 262144})]


async def test_a_running_vm_without_shares_gets_a_group_which_outlives_the_agent(place: Path, root: Path) -> None:
    async with agent(place / "s", VmSettings(cgroup_root=root)) as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        await vms.start(vm)
        before = vm.live.group
        controls.set_cpu_shares(vms, vm, 2048, live=True, config=False)
        group, pid = vm.live.group, pid_of(vm)
    async with agent(place / "s", VmSettings(cgroup_root=root)) as vms:
        vm = vms.get("web")
        view, inside = await vms.view(vm), groups_of_tasks(pid)
        controls.set_cpu_shares(vms, vm, 4096, live=True, config=False)
        assert before is None
        assert group is not None
        assert len(inside) == 1
        assert inside.pop().endswith(group.name)
        assert (view.cpu_shares, view.wishes.tunables.cpu_shares) == (2048, None)
        assert (group / "cpu.shares").read_text() == "4096\n"
    keeper_identity = vm.get_running().process
    assert keeper_identity is not None
    keeper_identity.send_signal(9)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await keeper_identity.wait_exit()
    async with agent(place / "s", VmSettings(cgroup_root=root)) as vms:
        assert (await vms.view(vms.get("web"))).cpu_shares is None
        await wait_gone(group)


async def test_shares_come_along_converted_between_versions(place: Path, root: Path) -> None:
    definition = await running_definition(place, UUID_1)
    async with agent(place / "t", VmSettings(cgroup_root=root)) as vms:
        vm, lock = await vms.start_incoming(definition, "m-1", AskedShares(200, Version.V2))
        vms.keep_here(lock)
        vms.persist(lock, Stored())
        lock.release()
        group = vm.live.group
        assert group is not None
        shares = (group / "cpu.shares").read_text()
        view = await vms.view(vm)
        await stop_all(vms)

        assert shares == "2048\n"
        assert (view.cpu_shares, view.wishes.tunables.cpu_shares) == (2048, 2048)
        assert ("TUNABLE", "CONVERTED") in [(event.happening.value, event.reason.value) for event in vms.events.after(0)]
        await wait_gone(group)


async def test_shares_without_a_controller_are_refused_at_start_and_no_shares_are_fine(place: Path) -> None:
    (place / "cgroup").mkdir()
    (place / "cgroup/cgroup.controllers").write_text("memory pids\n")
    async with agent(place / "s", VmSettings(cgroup_root=place / "cgroup")) as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")
        ask(vm, 512)
        with pytest.raises(WrongState, match=r"`cpu` is not in its cgroup\.controllers") as caught:
            await vms.start(vm)
        vm.save_wishes(Wishes())
        await vms.start(vm)
        with pytest.raises(WrongState, match="cgroup"):
            controls.set_cpu_shares(vms, vm, 512, live=True, config=False)
        await stop_all(vms)

        assert caught.value.reason == "CGROUP_MISSING"


async def test_a_start_that_fails_leaves_no_group(place: Path, root: Path) -> None:
    xml = guest_xml(place, UUID_1).replace(b"<disk type='file'>", b"<disk type='file'><driver type='qcow2'/>")
    async with agent(place / "s", VmSettings(cgroup_root=root)) as vms:
        vm = await vms.define(xml, "web.xml")
        ask(vm, 512)
        with pytest.raises(WrongState, match="not in qcow2 format"):
            await vms.start(vm)
        await until(lambda: not list((root / "ferry").glob(f"{UUID_1}*")), "no cgroup of the VM")


@pytest.mark.parametrize("shares", [0, -5, 2**31])
async def test_shares_that_no_kernel_takes_are_refused(place: Path, shares: int) -> None:
    async with agent(place / "s") as vms:
        vm = await vms.define(guest_xml(place, UUID_1), "web.xml")

        with pytest.raises(InvalidRequest, match=f"cpu shares {shares}"):
            controls.set_cpu_shares(vms, vm, shares, live=False, config=True)
