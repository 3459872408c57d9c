"""What may be done to a VM that moves: each call of the agent is classified, and those that change a VM are tried on both hosts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import grpc
import pytest

import ferry.agent.v1 as agent_package
from common.errors import FerryError
from common.rpc.status import calls_to
from ferry.agent.v1 import (
    adoption_pb2,
    block_service_pb2,
    block_service_pb2_grpc,
    control_pb2,
    save_service_pb2,
    save_service_pb2_grpc,
    vm_pb2,
)
from ferry.agent.v1 import migration_pb2 as pb
from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab, refused
from tests.e2e.move import Move, State, wishes
from tests.e2e.steps import steps
from tests.e2e.test_post_copy import assert_moved, plan_of, start_slow
from tests.e2e.waiting import until_equal

BUSY = Plan(dirty_mib_s=8.0)
STUBS: Final = {"SaveService": save_service_pb2_grpc.SaveServiceStub, "BlockService": block_service_pb2_grpc.BlockServiceStub}

# Calls that change nothing of a VM.
READS: Final = frozenset(
    {
        "GetHost",
        "ListSpans",
        "GetVm",
        "ListVms",
        "WatchEvents",
        "ListEvents",
        "GetMigration",
        "ListMigrations",
        "WatchMigration",
        "WaitMigration",
        "ListMigrationStatistics",
        "PlanDeparture",
        "PlanArrival",
        "GetVmJob",
        "WatchVmJob",
        "ListDisks",
        "GetBlockJob",
        "WatchBlockJob",
        "Examine",
    }
)
# Calls about a migration by its id, which its own machine answers.
OF_THE_MIGRATION: Final = frozenset(
    {
        "PerformMigration",
        "ResumeMigration",
        "HandOver",
        "ReportChannels",
        "PingMigration",
        "ClaimGuest",
        "FinishMigration",
        "ConfirmMigration",
        "AbandonMigration",
        "CancelMigration",
        "PauseMigration",
        "UnpauseMigration",
        "UpdateMigration",
        "StartPostcopy",
        "RecoverMigration",
        "ProvePath",
        "ReopenMigration",
        "FenceMigration",
        "ReleaseMigration",
    }
)
# Calls that are allowed, or that find another reason to refuse, and why that is right.
OTHERWISE: Final[Mapping[str, str]] = {
    "AttachConsole": "allowed: typing is between the user and the guest; the line ends with the guest's QEMU",
    "AdoptVm": "refused: the VM's QMP socket is the agent's",
    "PrepareMigration": "refused: name and UUID are taken",
    "CreateVm": "refused: name and UUID are taken",
    "UpdateVmJob": "about a save, of which there is none while a migration holds the VM",
    "CancelVmJob": "about a save, of which there is none while a migration holds the VM",
    "UpdateBlockJob": "about a block job, of which there is none while a migration holds the VM",
    "PivotBlockJob": "about a block job, of which there is none while a migration holds the VM",
    "AbortBlockJob": "about a block job, of which there is none while a migration holds the VM",
}
Build = Callable[["Target"], Any]


class Target:
    """The VM of a test, and a file that it was saved to."""

    def __init__(self, vm: str, xml: bytes, saved: Path) -> None:
        self.vm = vm
        self.xml = xml
        self.saved = saved


REFUSED: Final[Mapping[str, Build]] = {
    "DefineVm": lambda target: vm_pb2.DefineVmRequest(domain_xml=target.xml),
    "UndefineVm": lambda target: vm_pb2.UndefineVmRequest(vm=target.vm),
    "StartVm": lambda target: vm_pb2.StartVmRequest(vm=target.vm),
    "StopVm": lambda target: vm_pb2.StopVmRequest(vm=target.vm, force=True),
    "ReleaseVm": lambda target: adoption_pb2.ReleaseVmRequest(vm=target.vm),
    "PauseVm": lambda target: control_pb2.PauseVmRequest(vm=target.vm),
    "ResumeVm": lambda target: control_pb2.ResumeVmRequest(vm=target.vm),
    "ResetVm": lambda target: control_pb2.ResetVmRequest(vm=target.vm),
    "SetVm": lambda target: control_pb2.SetVmRequest(vm=target.vm, cpu_shares=512, live=True),
    "BeginMigration": lambda target: pb.BeginMigrationRequest(vm=target.vm, epoch=1, migration_id="second", options=wishes()),
    "SaveVm": lambda target: save_service_pb2.SaveVmRequest(vm=target.vm, path=f"{target.saved}.again"),
    "RestoreVm": lambda target: save_service_pb2.RestoreVmRequest(path=str(target.saved)),
    "DumpVm": lambda target: save_service_pb2.DumpVmRequest(vm=target.vm, path=f"{target.saved}.dump"),
    "CopyDisk": lambda target: block_service_pb2.CopyDiskRequest(vm=target.vm, disk="vda", path=f"{target.saved}.copy"),
    "PullDisk": lambda target: block_service_pb2.PullDiskRequest(vm=target.vm, disk="vda"),
    "CommitDisk": lambda target: block_service_pb2.CommitDiskRequest(vm=target.vm, disk="vda", base="x"),
    "SnapshotDisk": lambda target: block_service_pb2.SnapshotDiskRequest(vm=target.vm, disk="vda", path=f"{target.saved}.new"),
    "DiscardSavedVm": lambda target: save_service_pb2.DiscardSavedVmRequest(vm=target.vm),
}


def methods() -> dict[str, str]:
    """Return the service of each call of an agent, by every proto file of its package that has a service."""
    names = [module.name for module in pkgutil.iter_modules(agent_package.__path__) if module.name.endswith("_service_pb2")]
    files = [importlib.import_module(f"{agent_package.__name__}.{name}").DESCRIPTOR for name in names]
    return {method.name: service.name for file in files for service in file.services_by_name.values() for method in service.methods}


def stub_for(lab: Lab, host: str, method: str) -> Any:
    """Give the stub of an agent that has a method."""
    stub = STUBS.get(methods()[method])
    return lab.agents[host] if stub is None else stub(lab.channel(host))


def test_every_call_of_the_agent_is_classified_once():
    classes = (READS, OF_THE_MIGRATION, frozenset(OTHERWISE), frozenset(REFUSED))
    assert sum(len(names) for names in classes) == len(frozenset().union(*classes))
    assert frozenset().union(*classes) == frozenset(methods())


async def try_all(lab: Lab, host: str, target: Target, migration_id: str) -> None:
    """Fail unless each call that changes the VM is refused in the name of the migration."""
    job = "migration-out" if host == "host-a" else "migration-in"
    for name, build in REFUSED.items():
        stub, request = stub_for(lab, host, name), build(target)
        with refused("VM_BUSY", "is busy", f"{job} {migration_id}"):
            await getattr(stub, name)(request)
    for request in (
        control_pb2.SetVmRequest(vm=target.vm, autostart=True),
        control_pb2.SetVmRequest(vm=target.vm, cpu_shares=512, config=True),
        vm_pb2.StopVmRequest(vm=target.vm),
        save_service_pb2.SaveVmRequest(vm=target.vm, managed=True),
    ):
        method = type(request).__name__.removesuffix("Request")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub_for(lab, host, method), method)(request)
        if not (hasattr(request, "managed") and host == "host-b"):  # a VM on its way in has nothing to keep a guest with
            assert migration_id in (caught.value.details() or "")
    with refused("VM_EXISTS"):
        await lab.agents[host].CreateVm(control_pb2.CreateVmRequest(domain_xml=target.xml))
    with pytest.raises(FerryError) as refusal, calls_to(host):
        await save_service_pb2_grpc.SaveServiceStub(lab.channel(host)).CancelVmJob(
            save_service_pb2.CancelVmJobRequest(vm=target.vm)
        )
    assert refusal.value.reason in {"JOB_NOT_FOUND", "JOB_OVER"}  # an earlier VM of that name may have had one


async def save_and_bring_back(lab: Lab, plan: Plan) -> tuple[Any, Target]:
    """Start a guest that has been saved to a file and restored once."""
    guest = await lab.start_guest(plan=plan)
    target = Target(guest.name, domain(plan, lab.directory, uuid=guest.uuid), lab.directory / "web.saved")
    saves = save_service_pb2_grpc.SaveServiceStub(lab.channel("host-a"))
    await saves.SaveVm(save_service_pb2.SaveVmRequest(request_id=str(uuid4()), vm=guest.name, path=str(target.saved)))
    await until_equal(lambda: lab.vms("host-a"), {"web": "STOPPED"})
    await until_equal(lambda: job_of(lab), "")
    await saves.RestoreVm(save_service_pb2.RestoreVmRequest(request_id=str(uuid4()), path=str(target.saved)))
    await until_equal(lambda: job_of(lab), "")
    await guest.console.wait_ticks(3)
    return guest, target


async def job_of(lab: Lab) -> str:
    return (await lab.vm("host-a", "web")).job


async def test_a_vm_that_moves_is_protected_from_change_on_both_hosts(lab: Lab):
    guest, target = await save_and_bring_back(lab, BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=2.0))
    await move.wait_transferring()

    for host in ("host-a", "host-b"):
        await try_all(lab, host, target, move.id)
    with refused("VM_BUSY", move.id):
        await lab.start_move()

    await move.update(bandwidth_mib_s=0)
    outcome = await move.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_vm_that_was_taken_for_a_move_is_protected_before_the_transfer(lab: Lab):
    guest, target = await save_and_bring_back(lab, BUSY)
    async with steps(lab) as hand:
        await hand.begin_and_prepare()

        for host in ("host-a", "host-b"):
            await try_all(lab, host, target, hand.migration_id)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_vm_is_protected_on_both_hosts_while_its_memory_follows(lab: Lab):
    guest, target = await save_and_bring_back(lab, plan_of(("7.2", "10.0")))
    move: Move = await start_slow(lab, guest, "psk")

    for host in ("host-a", "host-b"):
        await try_all(lab, host, target, move.id)

    await assert_moved(lab, guest, move)
