"""Jobs on the disks of running VMs, on real QEMUs: what the guest sees, what the definitions say, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.blockjobs.block_job import State
from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
from agent.vm.events import Happening, Reason
from tests.qemu.disks import Agent, both, disk_xml, guest, make_chain, mostly_new, mostly_old
from tests.qemu.vms import stop_all

CHAIN = ("base.qcow2", "mid.qcow2", "top.qcow2")


async def assert_starts_again(one: Agent, images: list[str]) -> None:
    """Fail unless both definitions make a QEMU whose disk is on these images, and shows what was written to it."""
    running = one.vm.get_running().definition
    await stop_all(one.vms)
    assert one.vm.persistent is not None
    assert [option for option in one.vm.persistent.options if option.name == "blockdev"] == [
        option for option in running.options if option.name == "blockdev"
    ]
    await one.vms.start(one.vm)
    assert await one.paths() == images
    await one.read(9, 1024, 64)
    await one.assert_clean()


@both
async def test_a_copy_with_pivot_takes_the_disk_to_the_new_image(place: Path, version: str) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2"))
        await one.until(job, State.READY)
        await one.write(9, 1024, 64)
        await one.jobs.pivot(one.jobs.get(job.id, ""))
        ended = await one.done(job)

        assert ended.path == str(place / "new.qcow2")
        assert await one.paths() == ["new.qcow2"]
        for index in range(3):
            await one.read(index + 1, index * 256, 128)
        await one.assert_clean()
        told = [event for event in one.vms.events.after(0) if event.happening is Happening.BLOCK_JOB]
        assert [event.reason for event in told] == [Reason.READY, Reason.COMPLETED]
        assert told[-1].disk_job is not None
        assert (told[-1].disk_job.path, told[-1].disk_job.target, told[-1].disk_job.type) == (
            str(place / "new.qcow2"),
            "vda",
            "copy",
        )
        await assert_starts_again(one, ["new.qcow2"])
        for index in range(3):
            await one.read(index + 1, index * 256, 128)


@mostly_old
async def test_a_copy_of_the_top_stands_on_the_same_images(place: Path, version: str) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        await one.write(9, 1024, 64)

        await one.done(await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2", is_top_only=True, pivots_when_ready=True)))

        assert await one.paths() == ["new.qcow2", "mid.qcow2", "base.qcow2"]
        await one.assert_clean()
        await assert_starts_again(one, ["new.qcow2", "mid.qcow2", "base.qcow2"])


@mostly_new
async def test_an_aborted_copy_leaves_nothing(place: Path, version: str) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2"))
        await one.until(job, State.READY)

        await one.jobs.abort(one.jobs.get(job.id, ""))
        ended = await one.until(job, State.CANCELLED)

        assert f"{place}/new.qcow2 was removed" in ended.error
        assert not (place / "new.qcow2").exists()
        assert await one.paths() == ["top.qcow2", "mid.qcow2", "base.qcow2"]
        await one.assert_clean()


@mostly_old
@pytest.mark.parametrize(("base", "left"), [("", ["top.qcow2"]), ("base.qcow2", ["top.qcow2", "base.qcow2"])])
async def test_a_pull_takes_what_is_below_into_the_top(place: Path, version: str, base: str, left: list[str]) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        await one.write(9, 1024, 64)

        await one.done(await one.jobs.pull(one.vm, "vda", PullOrder(base)))

        assert await one.paths() == left
        await one.assert_clean()
        await assert_starts_again(one, left)


@mostly_new
@pytest.mark.parametrize(
    ("order", "left", "kind"),
    [
        (CommitOrder("base.qcow2", "mid.qcow2"), ["top.qcow2", "base.qcow2"], "commit"),
        (CommitOrder("base.qcow2", pivots_when_ready=True), ["base.qcow2"], "active-commit"),
        (CommitOrder("mid.qcow2", pivots_when_ready=True), ["mid.qcow2", "base.qcow2"], "active-commit"),
    ],
)
async def test_a_commit_takes_images_down(place: Path, version: str, order: CommitOrder, left: list[str], kind: str) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        await one.write(9, 1024, 64)

        await one.done(await one.jobs.commit(one.vm, "vda", order))

        assert await one.paths() == left
        await one.write(8, 2048, 64)
        told = [event for event in one.vms.events.after(0) if event.happening is Happening.BLOCK_JOB]
        assert told[-1].disk_job is not None
        assert told[-1].disk_job.type == kind
        await one.assert_clean()
        await assert_starts_again(one, left)
        await one.read(8, 2048, 64)


@both
async def test_a_snapshot_is_written_to_and_can_be_taken_down_again(place: Path, version: str) -> None:
    top = make_chain(place, *CHAIN)[-1]
    async with guest(place, version, disk_xml(top)) as one:
        await one.jobs.snapshot(one.vm, "vda", place / "snap.qcow2")
        await one.write(9, 1024, 64)
        assert await one.paths() == ["snap.qcow2", "top.qcow2", "mid.qcow2", "base.qcow2"]
        await one.assert_clean()
        await assert_starts_again(one, ["snap.qcow2", "top.qcow2", "mid.qcow2", "base.qcow2"])

        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("top.qcow2", pivots_when_ready=True)))

        assert await one.paths() == ["top.qcow2", "mid.qcow2", "base.qcow2"]
        await one.assert_clean()
        await assert_starts_again(one, ["top.qcow2", "mid.qcow2", "base.qcow2"])
