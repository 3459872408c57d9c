"""What goes wrong with jobs on disks, on real QEMUs: the guest goes on, nothing is left, and the text says what happened."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from agent.blockjobs.block_job import State, Wish
from agent.blockjobs.disks import commands_of
from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
from agent.doctor.examine import examine
from agent.qemu.block_commands import Sync
from agent.store import Store
from agent.vm.jobs import Job
from agent.vm.options import Option
from common.errors import Busy, FerryError, InvalidRequest, NotFound, WrongState
from tests.qemu.disks import MIB, Agent, agent, disk_xml, domain, fill, guest, image, make_chain, mostly_new, mostly_old, small_disk
from tests.qemu.vms import stop_all

as_root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
UUID_2 = UUID("61111111-0000-0000-0000-000000000002")


@contextmanager
def loop_device(path: Path, *, sector_bytes: int = 512) -> Iterator[Path]:
    """Make a block device of a file."""
    made = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", str(sector_bytes), str(path)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no loop device is to be had: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def options_with(one: Agent, node: str, **changed: object) -> tuple[Option, ...]:
    """Return the stored options with properties of one block node changed."""
    assert one.vm.persistent is not None
    options = one.vm.persistent.options
    return tuple(
        replace(option, properties={**option.properties, **changed}) if option.get("node-name") == node else option
        for option in options
    )


@pytest.mark.parametrize(
    "version", [pytest.param("10.0", marks=as_root), pytest.param("7.2", marks=[*as_root, pytest.mark.matrix])]
)
async def test_a_copy_whose_disk_gets_full_fails_and_is_removed(place: Path, version: str) -> None:
    path = image(place / "vda.qcow2", size_mib=16)
    with small_disk(place, 4) as small:
        async with guest(place, version, disk_xml(path)) as one:
            await one.write(9, 1024, 64)
            job = await one.jobs.copy(one.vm, "vda", CopyOrder(small / "new.qcow2"))
            await one.until(job, State.READY)

            for part in range(6):
                await one.write(7, (2 + part) * 1024, 1024)
            ended = await one.until(job, State.FAILED)

            assert "No space left on device" in ended.error
            assert f"the guest stays on {path}, {small}/new.qcow2 was removed" in ended.error
            assert list(small.iterdir()) == []
            await one.read(7, 2 * 1024, 6 * 1024)
            await one.assert_clean()


@pytest.mark.parametrize("version", [pytest.param("10.0", marks=as_root)])
async def test_room_is_looked_for_before_a_copy_begins(place: Path, version: str) -> None:
    path = image(place / "vda.qcow2", size_mib=16)
    fill(path, 3, 0, 8192)
    with small_disk(place, 4) as small:
        async with guest(place, version, disk_xml(path)) as one:
            with pytest.raises(
                WrongState, match=r"a copy of disk vda of VM web needs up to 8\.\d MiB, 4\.0 MiB are free there"
            ) as refused:
                await one.jobs.copy(one.vm, "vda", CopyOrder(small / "new.qcow2"))

            assert refused.value.reason == "NOT_ENOUGH_SPACE"
            assert list(small.iterdir()) == []
            await one.assert_clean()


@mostly_old
async def test_an_error_of_the_disk_itself_ends_a_copy_and_not_the_guest(place: Path, version: str) -> None:
    path = image(place / "vda.raw", image_format="raw")
    fill(path, 3, 0, 8192, "raw")
    async with agent(place / "s", version) as one:
        vm = await one.vms.define(domain(disk_xml(path, image_format="raw")), "web.xml")
        assert vm.persistent is not None
        broken = {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(path)},
            "inject-error": [{"event": "read_aio", "sector": 8192, "errno": 5, "iotype": "read"}],
        }
        options = tuple(
            replace(one, properties={"node-name": "vda-file", **broken}) if one.get("node-name") == "vda-file" else one
            for one in vm.persistent.options
        )
        vm.persistent = replace(vm.persistent, options=options)
        await one.vms.start(vm)
        try:
            job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.raw"))
            ended = await one.until(job, State.FAILED)

            assert "Input/output error" in ended.error
            assert not (place / "new.raw").exists()
            await one.read(3, 0, 1024)
            assert await commands_of(one.vms, one.vm).query_jobs() == ()
            assert not [node for node in (await one.graph()).nodes if node.startswith("ferry-")]
        finally:
            await stop_all(one.vms)


@mostly_new
async def test_a_guest_that_ends_during_a_copy_leaves_no_file(place: Path, version: str) -> None:
    path = image(place / "vda.qcow2")
    fill(path, 3, 0, 4096)
    async with guest(place, version, disk_xml(path)) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2", bandwidth_bytes_per_second=MIB))

        await one.vms.stop(one.vm, force=True)
        ended = await one.until(job, State.FAILED)

        assert "QEMU has ended" in ended.error
        assert not (place / "new.qcow2").exists()
        assert one.vms.jobs.disk_locks(one.vm.uuid) == ()
        await one.vms.start(one.vm)
        await one.assert_clean()


async def test_wrong_wishes_are_refused_with_what_would_be_right(place: Path) -> None:
    paths = make_chain(place, "base.qcow2", "mid.qcow2", "top.qcow2")
    alone, read_only = image(place / "alone.qcow2"), image(place / "ro.qcow2")
    (place / "there.qcow2").write_bytes(b"somebody's")
    small = image(place / "smaller.qcow2", size_mib=4)
    disks = disk_xml(paths[-1]) + disk_xml(alone, "vdb") + disk_xml(read_only, "vdc", inside="<readonly/>")
    async with guest(place, "10.0", disks) as one:
        copies: list[tuple[str, CopyOrder, str]] = [
            ("vdz", CopyOrder(place / "n.qcow2"), "has no disk vdz; its disks: vda, vdb, vdc"),
            ("vdc", CopyOrder(place / "n.qcow2"), "vdc of VM web is read-only"),
            ("vda", CopyOrder(place / "there.qcow2"), "exists already"),
            ("vda", CopyOrder(alone, reuses=True), "is used by VM web"),
            ("vda", CopyOrder(small, reuses=True), "has 4194304 bytes, disk vda of VM web has 8388608"),
            ("vda", CopyOrder(place / "there.qcow2", reuses=True), "is no qcow2 image"),
            ("vda", CopyOrder(place / "none.qcow2", reuses=True), "does not exist on this host"),
            ("vda", CopyOrder(place / "no/n.qcow2"), "its directory does not exist"),
            ("vda", CopyOrder(place / "n.qcow2", image_format="vmdk"), "qcow2 or raw is wanted"),
            ("vda", CopyOrder(place / "n.raw", image_format="raw", is_top_only=True), "stands on no other"),
            ("vdb", CopyOrder(place / "n.qcow2", is_top_only=True), "has a single image"),
        ]
        for disk, copy, text in copies:
            with pytest.raises((WrongState, InvalidRequest, NotFound), match=text):
                await one.jobs.copy(one.vm, disk, copy)
        for commit, text in (
            (CommitOrder("x.qcow2"), "has no image x.qcow2; its images: .*top.qcow2 on .*mid.qcow2 on .*base.qcow2"),
            (CommitOrder("top.qcow2"), "is not below top"),
            (CommitOrder("mid.qcow2", "base.qcow2"), "is not below top"),
            (CommitOrder("base.qcow2", "mid.qcow2", pivots_when_ready=True), "no pivot at the end"),
            (CommitOrder(""), "say with --base"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                await one.jobs.commit(one.vm, "vda", commit)
        for disk, pull, text in (
            ("vdb", PullOrder(), "stands on no other image"),
            ("vda", PullOrder("mid.qcow2"), "nothing lies between"),
        ):
            with pytest.raises(WrongState, match=text):
                await one.jobs.pull(one.vm, disk, pull)
        with pytest.raises(WrongState, match="exists already"):
            await one.jobs.snapshot(one.vm, "vda", place / "there.qcow2")

        assert (place / "there.qcow2").read_bytes() == b"somebody's"
        await one.assert_clean()
        await one.vms.stop(one.vm, force=True)
        with pytest.raises(WrongState, match="is not running"):
            await one.jobs.copy(one.vm, "vda", CopyOrder(place / "n.qcow2"))


async def test_one_job_a_disk_and_none_beside_a_job_of_the_vm(place: Path) -> None:
    first, second = image(place / "a.qcow2"), image(place / "b.qcow2")
    async with guest(place, "10.0", disk_xml(first) + disk_xml(second, "vdb")) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "n.qcow2"))

        with pytest.raises(Busy, match=f"disk vda of VM web is busy: copy {job.id}; ferry block abort web vda ends it"):
            await one.jobs.snapshot(one.vm, "vda", place / "m.qcow2")
        for of_vm in (Job.MIGRATION_OUT, Job.SAVE, Job.RELEASE):
            with pytest.raises(Busy, match="disk vda"):
                one.vms.lock(one.vm, of_vm, "other")
        await one.jobs.snapshot(one.vm, "vdb", place / "m.qcow2")
        await one.until(job, State.READY)
        await one.jobs.abort(one.jobs.get("web", "vda"))
        await one.until(job, State.CANCELLED)
        with one.vms.lock(one.vm, Job.SAVE, "other"), pytest.raises(Busy, match="VM web is busy: save other"):
            await one.jobs.copy(one.vm, "vda", CopyOrder(place / "n.qcow2"))
        await one.assert_clean()


@mostly_old
async def test_a_kept_copy_is_equal_to_the_disk_at_its_end(place: Path, version: str) -> None:
    async with guest(place, version, disk_xml(image(place / "vda.qcow2"))) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "kept.raw", image_format="raw"))
        await one.until(job, State.READY)
        await one.write(9, 1024, 64)

        await one.jobs.abort(one.jobs.get(job.id, ""), keeps_copy=True)
        await one.done(job)
        await one.write(8, 1024, 64)

        read = ["qemu-io", "-f", "raw", "-c", "read -P 9 1024k 64k", str(place / "kept.raw")]
        assert b"failed" not in subprocess.run(read, check=True, capture_output=True).stdout  # noqa: ASYNC221 -- a moment
        assert await one.paths() == ["vda.qcow2"]
        await one.assert_clean()


@mostly_new
async def test_limits_and_copy_on_read_stay_on_a_disk_that_goes_over(place: Path, version: str) -> None:
    top = make_chain(place, "base.qcow2", "mid.qcow2", "top.qcow2")[-1]
    limits = "<iotune><total_bytes_sec>100000000</total_bytes_sec></iotune>"
    async with guest(place, version, disk_xml(top, inside=limits, driver="copy_on_read='on'")) as one:
        await one.write(9, 1024, 64)
        await one.done(await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2", is_top_only=True, pivots_when_ready=True)))
        await one.assert_clean()
        await one.jobs.snapshot(one.vm, "vda", place / "snap.qcow2")
        await one.assert_clean()
        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("base.qcow2", "mid.qcow2")))
        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("base.qcow2", pivots_when_ready=True)))

        assert await one.paths() == ["base.qcow2"]
        await one.assert_clean()
        assert one.vm.get_running().definition.disks[0].node == "vda-throttle"
        await stop_all(one.vms)
        await one.vms.start(one.vm)
        await one.read(9, 1024, 64)
        assert (await one.jobs.see(one.vm))[0].chain.filters == ("vda-throttle", "vda-cor")  # type: ignore[union-attr]


@mostly_old
async def test_a_chain_of_options_of_its_own_is_followed(place: Path, version: str) -> None:
    paths = make_chain(place, "base.qcow2", "mid.qcow2", "top.qcow2")
    below = ""
    for path in paths[:-1]:
        below = (
            f"<backingStore type='file'><format type='qcow2'/><source file='{path}'/>{below or '<backingStore/>'}</backingStore>"
        )
    async with guest(place, version, disk_xml(paths[-1], inside=below)) as one:
        await one.write(9, 1024, 64)
        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("base.qcow2", "mid.qcow2")))
        assert await one.paths() == ["top.qcow2", "base.qcow2"]
        await one.assert_clean()
        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("base.qcow2", pivots_when_ready=True)))
        await one.assert_clean()

        await stop_all(one.vms)
        await one.vms.start(one.vm)

        assert await one.paths() == ["base.qcow2"]
        await one.read(9, 1024, 64)
        await one.write(8, 1024, 64)


async def test_a_deep_chain_is_pulled_and_started_again(place: Path) -> None:
    top = make_chain(place, *(f"l{index}.qcow2" for index in range(20)))[-1]
    async with guest(place, "7.2", disk_xml(top)) as one:
        assert len(await one.paths()) == 20

        await one.done(await one.jobs.commit(one.vm, "vda", CommitOrder("l3.qcow2", "l12.qcow2")))
        await one.done(await one.jobs.pull(one.vm, "vda", PullOrder("l1.qcow2")))

        assert await one.paths() == ["l19.qcow2", "l1.qcow2", "l0.qcow2"]
        for index in range(20):
            await one.read(index + 1, index * 256, 128)
        await one.assert_clean()


@pytest.mark.parametrize("sector_bytes", [pytest.param(512, marks=as_root), pytest.param(4096, marks=as_root)])
async def test_a_disk_goes_to_a_block_device_and_back(place: Path, sector_bytes: int) -> None:
    path = image(place / "vda.raw", image_format="raw")
    (place / "device.bin").write_bytes(bytes(8 * MIB))
    blocks = f"<blockio logical_block_size='{sector_bytes}' physical_block_size='{sector_bytes}'/>"
    with loop_device(place / "device.bin", sector_bytes=sector_bytes) as device:
        async with guest(place, "10.0", disk_xml(path, image_format="raw", inside=blocks)) as one:
            await one.write(9, 1024, 64)
            await one.done(await one.jobs.copy(one.vm, "vda", CopyOrder(device, reuses=True, pivots_when_ready=True)))
            assert await one.paths() == [device.name]
            await stop_all(one.vms)
            await one.vms.start(one.vm)
            await one.read(9, 1024, 64)
            await one.done(await one.jobs.copy(one.vm, "vda", CopyOrder(place / "back.raw", pivots_when_ready=True)))

            await one.read(9, 1024, 64)
            await one.assert_clean()
            await stop_all(one.vms)


async def test_what_is_not_ours_is_left_alone_and_told_by_the_doctor(place: Path) -> None:
    path = image(place / "vda.qcow2")
    image(place / "foreign.qcow2")
    async with guest(place, "10.0", disk_xml(path)) as one:
        store = Store(place / "s")
        assert await examine(one.vms, store, one.jobs, ()) == []
        commands = commands_of(one.vms, one.vm)
        await commands.add_node({"driver": "file", "node-name": "own-f", "filename": str(place / "foreign.qcow2")})
        await commands.add_node({"driver": "qcow2", "node-name": "own", "file": "own-f"})
        await commands.mirror("own-job", "vda", "own", Sync.FULL, bytes_per_second=0)
        (place / ".old.qcow2.0123abcd.part").touch()
        (place / "s/blockjobs/broken.json").write_text("{")

        found = {(one.kind, one.name) for one in await examine(one.vms, store, one.jobs, ())}
        with pytest.raises(Busy, match="QEMU has the job own-job on it, which Ferry has not begun"):
            await one.jobs.copy(one.vm, "vda", CopyOrder(place / "n.qcow2"))

        assert found == {
            ("FOREIGN_JOB", "own-job"),
            ("FOREIGN_NODE", "own"),
            ("FOREIGN_NODE", "own-f"),
            ("PARTIAL_FILE", str(place / ".old.qcow2.0123abcd.part")),
            ("BROKEN_RECORD", str(place / "s/blockjobs/broken.json")),
        }
    async with agent(place / "s", "10.0") as one:
        assert (place / "foreign.qcow2").exists()


async def test_a_disk_that_nobody_saw_go_over_is_left_to_a_user(place: Path) -> None:
    path = image(place / "vda.qcow2")
    async with guest(place, "7.2", disk_xml(path)) as one:
        job = await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2"))
        await one.until(job, State.READY)
        work = one.jobs.get(job.id, "")
        work.note(replace(work.record, wish=Wish.PIVOT))  # as an agent does that is gone before it has told QEMU
        await one.vms.stop(one.vm, force=True)
        undecided = await one.until(job, State.UNDECIDED)

        assert "nobody saw on which it was" in undecided.error
        with pytest.raises(Busy, match="ferry block pivot web vda takes the new one"):
            await one.vms.start(one.vm)
    async with agent(place / "s") as one:
        async with asyncio.timeout(5):
            await one.jobs.get(job.id, "").wait_over()
        await one.jobs.pivot(one.jobs.get("web", "vda"))
        await one.vms.start(one.vm)
        try:
            assert await one.paths() == ["new.qcow2"]
            await one.assert_clean()
        finally:
            await stop_all(one.vms)


async def test_a_stored_definition_on_another_image_is_left_alone(place: Path) -> None:
    path, other = image(place / "vda.qcow2"), image(place / "other.qcow2")
    async with guest(place, "7.2", disk_xml(path)) as one:
        await one.vms.define(domain(disk_xml(other)), "web.xml", force=True)

        await one.done(await one.jobs.copy(one.vm, "vda", CopyOrder(place / "new.qcow2", pivots_when_ready=True)))

        told = one.vms.events.after(0)[-1]
        assert "the stored definition was not changed: its disk vda is on" in told.detail
        assert one.vm.persistent is not None
        assert next(option.get("filename") for option in one.vm.persistent.find("blockdev")) == str(other)
        await one.assert_clean()


async def test_an_image_that_another_vm_stands_on_gets_no_commit(place: Path) -> None:
    base = make_chain(place, "base.qcow2")[0]
    mine, others = image(place / "mine.qcow2", on=base), image(place / "others.qcow2", on=base)
    async with guest(place, "7.2", disk_xml(mine)) as one:
        second = await one.vms.define(domain(disk_xml(others), uuid=UUID_2, name="db"), "db.xml")
        await one.vms.start(second)

        with pytest.raises(FerryError, match=r"base\.qcow2 is used by VM db"):
            await one.jobs.commit(one.vm, "vda", CommitOrder("base.qcow2", pivots_when_ready=True))
        await one.assert_clean()
