"""Jobs on disks that a guest writes to all the time: every write that was acknowledged is in the image that it is on in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from ferry.agent.v1 import block_service_pb2 as pb
from ferry.agent.v1 import block_service_pb2_grpc as rpc
from ferry.agent.v1 import doctor_service_pb2 as doctor_pb
from ferry.agent.v1 import doctor_service_pb2_grpc as doctor_rpc
from tests.e2e.binaries import require
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.lab import Lab
from tests.e2e.move import State
from tests.guests.disk import Area

MIB = 1 << 20
DISKS = (Disk(area=Area(write_mib_s=4.0)), Disk(size_mib=32, kind="raw", area=Area(slot_bytes=1536, first_byte=512)))


class Blocks:
    """The jobs on the disks of the guest on one host."""

    def __init__(self, lab: Lab, host: str = "host-a") -> None:
        self._stub = rpc.BlockServiceStub(lab.channel(host))
        self._doctor = doctor_rpc.DoctorServiceStub(lab.channel(host))

    async def copy(self, disk: str, path: object, **how: object) -> pb.BlockJob:
        request = pb.CopyDiskRequest(request_id=str(uuid4()), vm="web", disk=disk, path=str(path), **how)  # type: ignore[arg-type]
        return (await self._stub.CopyDisk(request)).job

    async def pull(self, disk: str) -> pb.BlockJob:
        return (await self._stub.PullDisk(pb.PullDiskRequest(request_id=str(uuid4()), vm="web", disk=disk))).job

    async def commit(self, disk: str, base: str, *, bandwidth_bytes_per_second: int = 0) -> pb.BlockJob:
        request = pb.CommitDiskRequest(
            request_id=str(uuid4()),
            vm="web",
            disk=disk,
            base=base,
            pivot=True,
            bandwidth_bytes_per_second=bandwidth_bytes_per_second,
        )
        return (await self._stub.CommitDisk(request)).job

    async def snapshot(self, disk: str, path: object) -> pb.BlockJob:
        request = pb.SnapshotDiskRequest(request_id=str(uuid4()), vm="web", disk=disk, path=str(path))
        return (await self._stub.SnapshotDisk(request)).job

    async def abort(self, disk: str) -> None:
        await self._stub.AbortBlockJob(pb.AbortBlockJobRequest(vm="web", disk=disk))

    async def pivot(self, disk: str) -> None:
        await self._stub.PivotBlockJob(pb.PivotBlockJobRequest(vm="web", disk=disk))

    async def follow(self, job: pb.BlockJob, *, until_ready: bool = False) -> AsyncIterator[pb.BlockJob]:
        async for response in self._stub.WatchBlockJob(pb.WatchBlockJobRequest(vm=job.id, until_ready=until_ready)):
            yield response.job

    async def over(self, job: pb.BlockJob, *, until_ready: bool = False) -> pb.BlockJob:
        async for seen in self.follow(job, until_ready=until_ready):
            job = seen
        return job

    async def done(self, job: pb.BlockJob) -> pb.BlockJob:
        ended = await self.over(job)
        assert ended.state == pb.BlockJob.STATE_COMPLETED, ended.error
        return ended

    async def findings(self) -> list[str]:
        response = await self._doctor.Examine(doctor_pb.ExamineRequest())
        return [finding.text for finding in response.findings]


async def written_on(guest: WritingGuest, *targets: str) -> None:
    """Let the guest write more to these disks."""
    for target in targets:
        await guest.console.wait_written(100, disk=guest.plan.index(target))


@pytest.mark.parametrize("version", ["7.2", pytest.param("10.0", marks=pytest.mark.matrix)])
async def test_a_guest_that_writes_goes_through_all_kinds_of_jobs(version, lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(emulator=require(version), disks=DISKS))
    blocks, place = Blocks(lab), lab.directory

    copies = [await blocks.copy(target, place / f"{target}-copy.qcow2", format="qcow2", pivot=True) for target in ("vdb", "vdc")]
    for copy in copies:
        await blocks.done(copy)
    await written_on(guest, "vdb", "vdc")
    await blocks.snapshot("vdb", place / "snap1.qcow2")
    await written_on(guest, "vdb")
    await blocks.snapshot("vdb", place / "snap2.qcow2")
    aborted = await blocks.over(await blocks.copy("vdb", place / "aborted.qcow2"), until_ready=True)
    await blocks.abort("vdb")
    await blocks.over(aborted)
    await blocks.done(await blocks.pull("vdb"))
    await blocks.snapshot("vdb", place / "snap3.qcow2")
    await written_on(guest, "vdb")
    await blocks.done(await blocks.commit("vdb", "snap2.qcow2"))
    assert await blocks.findings() == []
    await leave(lab, guest, "host-a")

    guest.assert_whole()
    guest.assert_disk("vdb", place / "snap2.qcow2", is_final=True)
    guest.assert_disk("vdc", place / "vdc-copy.qcow2", kind="qcow2", is_final=True)
    assert not (place / "aborted.qcow2").exists()


@pytest.mark.parametrize(("version", "count"), [("10.0", 4), pytest.param("7.2", 16, marks=pytest.mark.matrix)])
async def test_copies_are_aborted_again_and_again_under_a_guest_that_writes(version: str, count: int, lab: Lab):
    busy = Disk(area=Area(write_mib_s=6.0))
    guest = await start_disk_guest(lab, DiskPlan(emulator=require(version), disks=(busy,)))
    blocks = Blocks(lab)

    for number in range(count):  # with a write-blocking copy 10.0 does not survive the first, 7.2 not the thirteenth
        is_ready = bool(number % 2)
        how = {} if is_ready else {"bandwidth_bytes_per_second": MIB}
        job = await blocks.copy("vdb", lab.directory / "copy.qcow2", **how)
        await (blocks.over(job, until_ready=True) if is_ready else written_on(guest, "vdb"))
        await blocks.abort("vdb")
        assert (await blocks.over(job)).state == pb.BlockJob.STATE_CANCELLED
        await written_on(guest, "vdb")
    assert await blocks.findings() == []
    await leave(lab, guest, "host-a")

    guest.assert_whole()
    guest.assert_disk("vdb", is_final=True)


async def test_a_guest_whose_disk_went_over_moves_to_another_host_and_back(lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(emulator=require("7.2"), disks=(Disk(area=Area(write_mib_s=1.0)),)))
    blocks, place = Blocks(lab), lab.directory
    await blocks.snapshot("vdb", place / "snap.qcow2")
    await blocks.done(await blocks.copy("vdb", place / "copy.qcow2", top_only=True, pivot=True))

    for host in ("host-b", "host-a"):
        outcome = await (await lab.start_move(to=host)).outcome()
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await written_on(guest, "vdb")
        assert await Blocks(lab, host).findings() == []
    await blocks.done(await blocks.commit("vdb", str(guest.images["vdb"])))
    await leave(lab, guest, "host-a")

    guest.assert_whole()
    guest.assert_disk("vdb", is_final=True)


@pytest.mark.parametrize("is_ready", [False, pytest.param(True, marks=pytest.mark.matrix)])
async def test_a_job_outlives_an_agent_that_is_killed(lab: Lab, *, is_ready: bool):
    guest = await start_disk_guest(lab, DiskPlan(emulator=require("10.0"), disks=(Disk(),)))
    blocks, place = Blocks(lab), lab.directory
    job = await blocks.copy("vdb", place / "copy.qcow2", pivot=not is_ready, bandwidth_bytes_per_second=0 if is_ready else 8 * MIB)
    if is_ready:
        await blocks.over(job, until_ready=True)

    await lab.kill("agent-a")
    await written_on(guest, "vdb")
    await lab.restart("agent-a")
    await lab.wait_reachable()
    if is_ready:
        await blocks.over(job, until_ready=True)
        await blocks.pivot("vdb")
    await blocks.done(job)

    assert await blocks.findings() == []
    await written_on(guest, "vdb")
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    guest.assert_disk("vdb", place / "copy.qcow2", is_final=True)


async def test_after_a_kill_of_qemu_the_copy_has_all_that_was_flushed(lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(emulator=require("7.2"), disks=(Disk(),)))
    blocks, place = Blocks(lab), lab.directory
    await blocks.done(await blocks.copy("vdb", place / "copy.qcow2", pivot=True))
    await written_on(guest, "vdb")

    await lab.stop_vm("host-a", "web")

    guest.assert_flushed("vdb", place / "copy.qcow2")
