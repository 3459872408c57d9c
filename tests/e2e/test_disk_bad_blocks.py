"""Errors of what a guest's own disk stands on, at the source: below a move with the disk, and below jobs on it."""

from __future__ import annotations

import errno
from uuid import uuid4

import pytest

from ferry.agent.v1 import block_service_pb2 as block_pb
from ferry.agent.v1 import control_pb2
from tests.e2e.bad_blocks import MANY, BadBlocks, Fault, sector_of
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.disk_stages import MIB, DiskMove, Stage, begin_disk_move, cold_disk, start_guest_to_move
from tests.e2e.lab import PAUSED, Lab
from tests.e2e.move import State, Where
from tests.e2e.qemu_state import QemuState, assert_state, state_of, watched_emulator
from tests.e2e.test_block_jobs import Blocks, written_on
from tests.guests.disk import Area, create_image, write_to_image

pytestmark = pytest.mark.timeout(120)

matrix = pytest.mark.matrix
MARGIN_S = 2.0
COLD_BYTE = 30 * MIB
NO_SPACE = "No space left on device"
RETRIES = 400
STOPS = 'error_policy="stop" rerror_policy="stop"'
both = pytest.mark.parametrize("version", ["10.0", pytest.param("7.2", marks=matrix)])


def plan_of(lab: Lab, version: str, *, kind: str = "qcow2", driver: str = "") -> DiskPlan:
    """Plan a guest that lives with errors, with cold data on its disk."""
    cold = cold_disk(lab.directory, kind=kind)
    disk = Disk(size_mib=cold.size_mib, kind=kind, area=cold.area, path=cold.path, driver=driver)
    return DiskPlan(emulator=watched_emulator(lab, version), disks=(disk,), may_fail=True)


async def go_on(lab: Lab) -> None:
    """Let a guest that an error has stopped try again."""
    assert (await lab.vms("host-a"))["web"] == PAUSED
    await lab.agents["host-a"].ResumeVm(control_pb2.ResumeVmRequest(request_id=str(uuid4()), vm="web"))


async def bad_at(lab: Lab, stage: Stage, bad: BadBlocks, plan: DiskPlan, *faults: Fault) -> DiskMove:
    """Start a move whose disk has these faults from this stage on; from the beginning where it is ALL."""
    guest = await start_guest_to_move(lab, stage, plan=plan)
    copies = {"vdb": lab.directory / f"there.{plan.disks[0].kind}"}
    if stage is Stage.ALL:
        await bad.inject(*faults)
        return await begin_disk_move(lab, guest, stage, copies=copies)
    moving = await begin_disk_move(lab, guest, stage, copies=copies)
    await moving.reach()
    await bad.inject(*faults)
    return moving


# moves


@pytest.mark.parametrize("count", [0, pytest.param(1, marks=matrix)], ids=["for-ever", "once"])
@pytest.mark.parametrize("stage", [Stage.ALL, pytest.param(Stage.COPYING, marks=matrix)])
@both
async def test_a_block_that_cannot_be_read_fails_the_move_and_the_guest_runs_on(version, stage, count, lab_watched: Lab):
    lab = lab_watched
    plan, bad = plan_of(lab, version), BadBlocks(lab)
    path = plan.disks[0].path
    assert path is not None
    moving = await bad_at(lab, stage, bad, plan, Fault(sector=sector_of(path, COLD_BYTE), count=count))
    if stage is not Stage.ALL:
        await moving.move.update(disk_bandwidth_mib_s=0)
    outcome = await moving.move.outcome()

    assert (outcome.state, outcome.error_reason) == (State.STATE_FAILED, "DISK_COPY_FAILED"), outcome.error
    assert "disk vdb could not be copied: Input/output error (reading it failed)" in outcome.error
    assert "mend its storage on host-a and try again" in outcome.error
    assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
    assert moving.guest.console.last(1).error_count == 0
    if stage is not Stage.ALL:
        await bad.mend()
    await moving.assert_as_before()
    if stage is Stage.ALL:
        await bad.mend()
    await moving.assert_moves_now()


@matrix
async def test_a_map_of_the_image_that_cannot_be_read_fails_each_move_under_a_guest_that_writes(lab_watched: Lab):
    """QEMU ends such a job by itself, whatever its policy is; 7.2 does not always survive that."""
    lab = lab_watched
    path = create_image(lab.directory / "vdb.qcow2", 1200 * MIB)
    write_to_image(path, {600 * MIB: b"\x07" * MIB}, kind="qcow2")
    disk = Disk(size_mib=1200, path=path, area=Area(write_mib_s=16.0, verify_mib_s=1.0, depth=16))
    guest = await start_disk_guest(lab, DiskPlan(emulator=watched_emulator(lab, "10.0"), disks=(disk,)))
    bad = BadBlocks(lab)
    before_data = sector_of(path, 600 * MIB) - 128
    await bad.inject(Fault(sector=before_data))  # QEMU's second table of where data is, which only a copy asks for

    for _ in range(4):
        moving = await begin_disk_move(lab, guest, Stage.ALL, copies={"vdb": lab.directory / "there.qcow2"})
        await moving.assert_kept(State.STATE_FAILED, "DISK_COPY_FAILED", words=("vdb", "Input/output error", "host-a", "host-b"))
        assert guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
    await bad.mend()


@matrix
@pytest.mark.parametrize(
    ("kind", "stage", "fault"),
    [
        ("raw", Stage.ALL, Fault("write")),
        ("raw", Stage.SENDING, Fault("write")),
        ("qcow2", Stage.ALL, Fault("write", count=1)),
        ("qcow2", Stage.SENDING, Fault("write", count=1)),
        ("qcow2", Stage.COPYING, Fault("flush", count=3)),
    ],
)
@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_a_guest_that_is_told_of_errors_of_its_disk_moves_away_from_them(version, kind, stage, fault, lab_watched: Lab):
    lab = lab_watched
    moving = await bad_at(lab, stage, BadBlocks(lab, kind=kind), plan_of(lab, version, kind=kind), fault)
    if stage is not Stage.ALL:
        await moving.move.wait_source(lambda half: half.warnings, "an error")
        await moving.move.update(bandwidth_mib_s=0, disk_bandwidth_mib_s=0)
    outcome = await moving.move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert moving.guest.console.last(1).error_count > 0
    told = "the guest was told of an I/O error on host-a: write on vdb: Input/output error"  # QEMU says so of a flush too
    assert stage is Stage.ALL or told in outcome.warnings
    await moving.assert_arrived()


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        (Stage.SENDING, Fault("write", errno.ENOSPC, count=1)),
        pytest.param(Stage.COPYING, Fault("write", errno.ENOSPC, count=1), marks=matrix),
        pytest.param(Stage.SENDING, Fault("write", count=1), marks=matrix),
        pytest.param(Stage.SENDING, Fault("read", count=1), marks=matrix),
    ],
)
@both
async def test_an_error_that_stops_the_guest_ends_its_move_and_it_goes_on_here(version, stage, fault, lab_watched: Lab):
    """No space stops a guest unless its disk says otherwise; other errors where its disk says so."""
    lab = lab_watched
    is_full = fault.number == errno.ENOSPC
    bad, plan = BadBlocks(lab), plan_of(lab, version, driver="" if is_full else STOPS)
    moving = await bad_at(lab, stage, bad, plan, fault)
    outcome = await moving.move.outcome()

    assert (outcome.state, outcome.error_reason) == (State.STATE_FAILED, "GUEST_IO_ERROR"), outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    why = NO_SPACE if is_full else "Input/output error"
    assert f"the guest had an I/O error ({fault.iotype} on vdb: {why})" in outcome.error
    assert "stands still on host-a: mend what its disk stands on, then: ferry vm resume web" in outcome.error
    again = await (await lab.start_move()).outcome()
    assert again.error_reason == "VM_NOT_MOVABLE"
    assert "VM web cannot be moved: the guest had an I/O error and stands still: mend what its disk stands on" in again.error
    await bad.mend()
    await go_on(lab)
    await moving.assert_as_before()
    await moving.assert_moves_now()


@matrix
@pytest.mark.parametrize("kind", ["qcow2", "raw"])
@pytest.mark.parametrize("version", ["10.0", "7.2"])
async def test_a_disk_that_cannot_be_flushed_keeps_its_guest(version, kind, lab_watched: Lab):
    """QEMU flushes every disk before it gives the guest away; one that was not is not given away."""
    lab = lab_watched
    bad = BadBlocks(lab, kind=kind)
    moving = await bad_at(lab, Stage.SENDING, bad, plan_of(lab, version, kind=kind), Fault("flush", count=RETRIES))
    await moving.move.wait_source(lambda half: half.warnings, "an error")
    await moving.move.update(bandwidth_mib_s=0)
    outcome = await moving.move.outcome()

    assert (outcome.state, outcome.error_reason) == (State.STATE_FAILED, "TRANSFER_FAILED"), outcome.error
    assert "its guest was told of an I/O error (write on vdb: Input/output error): mend what the disk stands on" in outcome.error
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    await bad.mend()
    await moving.assert_as_before()
    await moving.assert_moves_now()


# jobs


async def assert_failed(blocks: Blocks, job: block_pb.BlockJob, *words: str) -> None:
    """Fail unless a job ends by an I/O error, in these words."""
    ended = await blocks.over(job)
    assert ended.state == block_pb.BlockJob.STATE_FAILED, ended
    for word in ("Input/output error", *words):
        assert word in ended.error, ended.error


async def assert_mended(lab: Lab, guest: WritingGuest, before: QemuState) -> None:
    """Fail unless QEMU has what it had, and the guest writes on."""
    await assert_state(lab, before)
    assert await Blocks(lab).findings() == []
    await written_on(guest, "vdb")


async def start_guest(lab: Lab, version: str) -> tuple[WritingGuest, Blocks]:
    return await start_disk_guest(lab, plan_of(lab, version)), Blocks(lab)


@both
async def test_errors_of_the_disk_end_its_copy_and_not_the_guest(version, lab_watched: Lab):
    lab = lab_watched
    guest, blocks = await start_guest(lab, version)
    before, bad, copy = await state_of(lab), BadBlocks(lab), lab.directory / "copy.qcow2"

    for count in (0, 1):
        await bad.inject(Fault(sector=sector_of(guest.images["vdb"], COLD_BYTE), count=count))
        job = await blocks.copy("vdb", copy)
        await assert_failed(blocks, job, f"the guest stays on {guest.images['vdb']}, {copy} was removed")
        assert not copy.exists()
        await bad.mend()
        await assert_mended(lab, guest, before)
    assert guest.console.last(1).error_count == 0

    job = await blocks.over(await blocks.copy("vdb", copy), until_ready=True)
    await bad.inject(Fault("write", count=MANY))  # of the guest's own writes: what has failed is in neither
    await written_on(guest, "vdb")
    assert guest.console.last(1).error_count > 0
    await bad.mend()
    await blocks.pivot("vdb")
    await blocks.done(job)
    await written_on(guest, "vdb")
    assert await blocks.findings() == []
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    guest.assert_disk("vdb", copy, is_final=True)


@matrix
@both
async def test_a_copy_that_cannot_read_what_the_guest_writes_fails_while_it_is_ready(version, lab_watched: Lab):
    lab = lab_watched
    guest, blocks = await start_guest(lab, version)
    before, bad, copy = await state_of(lab), BadBlocks(lab), lab.directory / "copy.qcow2"
    job = await blocks.over(await blocks.copy("vdb", copy), until_ready=True)

    await bad.inject(Fault("read"))

    await assert_failed(blocks, job, f"the guest stays on {guest.images['vdb']}, {copy} was removed")
    await bad.mend()
    await assert_mended(lab, guest, before)
    await blocks.done(await blocks.copy("vdb", copy, pivot=True))
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    guest.assert_disk("vdb", copy, is_final=True)


@matrix
@pytest.mark.parametrize("count", [0, 1], ids=["for-ever", "once"])
@both
async def test_a_pull_from_an_image_that_cannot_be_read_leaves_the_chain_as_it_was(version, count, lab_watched: Lab):
    lab = lab_watched
    guest, blocks = await start_guest(lab, version)
    base, top = guest.images["vdb"], lab.directory / "top.qcow2"
    await blocks.snapshot("vdb", top)
    before, bad = await state_of(lab), BadBlocks(lab, is_read_only=True)
    await bad.inject(Fault(sector=sector_of(base, COLD_BYTE), count=count))

    await assert_failed(blocks, await blocks.pull("vdb"))

    await bad.mend()
    await assert_mended(lab, guest, before)
    await blocks.done(await blocks.pull("vdb"))
    assert await blocks.findings() == []
    base.unlink()
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    guest.assert_disk("vdb", top, is_final=True)


@matrix
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@both
async def test_a_commit_into_an_image_that_cannot_be_written_leaves_the_guest_on_its_own(version, number, lab_watched: Lab):
    lab = lab_watched
    guest, blocks = await start_guest(lab, version)
    base, top = guest.images["vdb"], lab.directory / "top.qcow2"
    await blocks.snapshot("vdb", top)
    await guest.console.wait_written(600, disk=1)
    before = await state_of(lab)
    job = await blocks.commit("vdb", base.name, bandwidth_bytes_per_second=MIB // 4)

    await BadBlocks(lab).inject(Fault("write", number))

    ended = await blocks.over(job)
    assert ended.state == block_pb.BlockJob.STATE_FAILED, ended
    assert (NO_SPACE if number == errno.ENOSPC else "Input/output error") in ended.error
    assert guest.console.last(1).error_count == 0
    await BadBlocks(lab, is_read_only=True).mend()
    await assert_mended(lab, guest, before)
    await blocks.done(await blocks.commit("vdb", base.name))
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    guest.assert_disk("vdb", base, is_final=True)
