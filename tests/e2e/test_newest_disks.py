"""Where disks were copied, one host has the newest of them, and nothing starts an older one without force."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from ferry.agent.v1 import control_pb2, vm_pb2
from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.binaries import require
from tests.e2e.disk_guest import DiskPlan, WritingGuest, disk_domain, leave, start_disk_guest
from tests.e2e.disk_moves import copied_to, places
from tests.e2e.lab import Lab, refused
from tests.e2e.move import Move, State, Where, post_copy, wishes
from tests.e2e.waiting import until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

SLOW_MIB_S = 3


def plan(version: str = "") -> DiskPlan:
    """Make a guest with memory that takes its time to follow."""
    return DiskPlan(emulator=require(version) if version else "", memory_mib=32, dirty_mib_s=24.0)


async def into_post_copy(lab: Lab, guest: WritingGuest, modes: modes_pb.Modes | None = None) -> Move:
    """Move a guest with its disk by post-copy, and return when it writes there and half of its memory is still at the source."""
    slow = post_copy(bandwidth_mib_s=SLOW_MIB_S)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=16, post_copy=slow, disks=copied_to(guest), modes=modes))
    await move.wait_destination_phase("Filling")
    await move.wait_source(lambda half: half.downtime.HasField("total"), "Resume answered")
    await guest.console.wait_written(3, disk=guest.plan.index("vdb"))
    return move


async def ferry(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return await asyncio.to_thread(lab.fleet.ferry, *words)


async def assert_held_back(lab: Lab, guest: WritingGuest, newest: Path) -> None:
    """Fail unless the source refuses to start the older disk, and says where the newer one is and how to start that."""
    told = await ferry(lab, "vm", "start", guest.name, "--host", "host-a")
    assert told.returncode == 1
    for word in ("DISK_OLDER", "host-b", str(newest), f"ferry vm start {guest.name} --host host-b", "--force"):
        assert word in told.stderr
    found = await ferry(lab, "doctor")
    assert found.returncode == 1
    assert "older-disk" in found.stdout
    assert str(newest) in found.stdout


CASES = [
    pytest.param("host-b", "7.2"),
    pytest.param("host-a", "10.0"),
    pytest.param("host-b", "10.0", marks=pytest.mark.matrix),
    pytest.param("host-a", "7.2", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "version"), CASES)
async def test_a_qemu_that_dies_in_post_copy_leaves_the_newest_disk_at_the_destination_where_it_starts(victim, version, lab: Lab):
    guest = await start_disk_guest(lab, plan(version))
    newest = places(guest)["vdb"]
    move = await into_post_copy(lab, guest)

    os.kill(await lab.qemu_pid(victim), signal.SIGKILL)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location != Where.GUEST_LOCATION_SOURCE
    for word in ("host-b", f"vdb in {newest}", f"ferry vm start {guest.name} --host host-b"):
        assert word in outcome.error
    shown = await ferry(lab, "migration", "show", move.id)
    assert "--host host-a" not in shown.stdout + shown.stderr
    await until(lambda: not lab.qemus(), "no QEMU")
    guest.assert_flushed("vdb", newest)
    await assert_held_back(lab, guest, newest)

    done = await ferry(lab, "vm", "start", guest.name, "--host", "host-b")
    assert done.returncode == 0, done.stderr
    await guest.console.wait_ticks(1)


async def test_the_older_disk_starts_by_force_alone(lab: Lab):
    guest = await start_disk_guest(lab, plan())
    move = await into_post_copy(lab, guest)
    os.kill(await lab.qemu_pid("host-b"), signal.SIGKILL)
    await move.outcome()
    await assert_held_back(lab, guest, places(guest)["vdb"])

    done = await ferry(lab, "vm", "start", guest.name, "--host", "host-a", "--force")
    assert done.returncode == 0, done.stderr

    await lab.stop_vm("host-a", guest.name)
    await lab.start_vm("host-a", guest.name)  # it is the newest from then on
    assert (await lab.vm("host-a", guest.name)).moved_to == ""


async def test_an_older_disk_is_held_back_whoever_names_it(lab: Lab):
    """Undefined and defined again, or as a transient VM of another name."""
    guest = await start_disk_guest(lab)
    elsewhere = lab.directory / "elsewhere"
    elsewhere.mkdir()
    xml = disk_domain(guest.plan, elsewhere)[0].replace(bytes(elsewhere), bytes(lab.directory))
    move = await lab.start_move(options=wishes(disks=copied_to(guest)))
    assert (await move.outcome()).state == State.STATE_SUCCEEDED
    await leave(lab, guest, "host-b")

    other = xml.replace(b"<name>web</name>", b"<name>other</name>")
    create = control_pb2.CreateVmRequest(domain_xml=other)
    with refused("DISK_OLDER", "vdb", "host-b", str(places(guest)["vdb"])):
        await lab.agents["host-a"].CreateVm(create)
    await lab.define("host-a", other)
    with refused("DISK_OLDER", "host-b"):
        await lab.start_vm("host-a", "other")
    create.force = True
    await lab.undefine("host-a", "other")
    await lab.agents["host-a"].CreateVm(create)


async def test_a_guest_that_comes_back_into_its_old_disk_makes_it_the_newest(lab: Lab):
    guest = await start_disk_guest(lab)
    keep = modes_pb.Modes(source_definition=modes_pb.SOURCE_DEFINITION_KEEP)
    there = await lab.start_move(options=wishes(disks=copied_to(guest), modes=keep))
    assert (await there.outcome()).state == State.STATE_SUCCEEDED
    with refused("DISK_OLDER", "host-b", str(places(guest)["vdb"])):  # the command finds first that the guest runs there
        await lab.start_vm("host-a", guest.name)

    home = disks_pb.DiskWishes(destination_paths={"vdb": str(guest.images["vdb"])}, reuse=True)
    back = await lab.start_move(to="host-a", options=wishes(disks=home))
    outcome = await back.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await leave(lab, guest, "host-a")
    guest.assert_disk("vdb", is_final=True)

    await lab.start_vm("host-a", guest.name)


async def test_a_move_that_does_not_happen_leaves_its_disks_the_newest(lab: Lab):
    guest = await start_disk_guest(lab)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S, disks=copied_to(guest)))
    await move.wait_transferring()

    await move.cancel()
    await move.outcome()

    await lab.stop_vm("host-a", guest.name)
    await lab.start_vm("host-a", guest.name)


async def test_a_vm_whose_newest_disks_are_elsewhere_does_not_start_with_its_host(lab: Lab):
    guest = await start_disk_guest(lab, plan())
    await lab.agents["host-a"].SetVm(control_pb2.SetVmRequest(vm=guest.name, autostart=True))
    move = await into_post_copy(lab, guest)
    os.kill(await lab.qemu_pid("host-b"), signal.SIGKILL)
    await move.outcome()

    for host in ("host-a", "host-b"):
        await lab.kill(f"agent-{host[-1]}")
        (lab.fleet.directory / host / "autostarted.json").unlink(missing_ok=True)  # as after a boot of the host
        await lab.restart(f"agent-{host[-1]}")

    assert not lab.qemus()
    assert not (await lab.vm("host-a", guest.name)).autostart
    assert {await state(lab, host) for host in ("host-a", "host-b")} <= {"STOPPED", "CRASHED"}


async def state(lab: Lab, host: str) -> str:
    """Say what the VM is on a host."""
    return vm_pb2.Vm.State.Name((await lab.vm(host, "web")).state).removeprefix("STATE_")
