"""Faults of a move with disks: the guest runs on with its own disk, nothing of the copy is left, and the next try succeeds."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from tests.e2e.disk_guest import DiskPlan, start_disk_guest
from tests.e2e.disk_stages import (
    COLD_MIB,
    SETTLING_DOWNTIME_S,
    SLOW_MIB_S,
    Stage,
    cold_disk,
    copied_to,
    file_system,
    start_disk_move,
)
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.letters import empty, fill
from tests.e2e.move import State, wishes
from tests.e2e.qemu_state import assert_state, state_of
from tests.e2e.refusals import assert_refused
from tests.e2e.steps import steps

FAILED, CANCELLED = State.STATE_FAILED, State.STATE_CANCELLED
MARGIN_S = 2.0
STALL_LIMIT_S = 10.0
BOUNDED_S = 6.0
PIECE_BYTES = 1 << 20
REASONS_OF_A_LOST_QEMU = ("DISK_COPY_FAILED", "QEMU_ENDED", "TRANSFER_FAILED")
MIB = 1 << 20
OLD_TO_NEW, NEW_TO_OLD, NEW_TO_NEW = ("7.2", "10.0"), ("10.0", "7.2"), ("10.0", "10.0")
PSK_AND_REST = [
    pytest.param("psk", OLD_TO_NEW, id="psk"),
    *[
        pytest.param(way, pair, id=f"{way}-{'-'.join(pair)}", marks=pytest.mark.matrix)
        for way, pair in (
            ("plain", OLD_TO_NEW),
            ("tunnel", OLD_TO_NEW),
            ("psk", NEW_TO_OLD),
            ("tunnel", NEW_TO_OLD),
            ("psk", NEW_TO_NEW),
        )
    ],
]


# room


@pytest.mark.root
@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
async def test_a_destination_that_runs_out_of_room_fails_the_move(way, pair, lab_watched: Lab):
    with file_system(lab_watched.directory / "small", 96) as small:
        moving = await start_disk_move(lab_watched, Stage.COPYING, way, pair=pair, copy=small / "there.qcow2")
        await moving.reach()

        fill(small)

        await moving.assert_kept(FAILED, "NO_SPACE", words=("vdb", "No space left on device", f"make room on {moving.destination}"))
        moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
        empty(small)
        await moving.assert_moves_now()


@pytest.mark.root
@pytest.mark.matrix
@pytest.mark.parametrize("pair", [OLD_TO_NEW, NEW_TO_OLD, NEW_TO_NEW], ids="-".join)
async def test_the_copy_of_one_disk_that_fails_ends_that_of_the_other_too(pair, lab_watched: Lab):
    lab = lab_watched
    plan = DiskPlan(disks=(cold_disk(lab.directory), cold_disk(lab.directory, target="vdc", kind="raw")))
    with file_system(lab.directory / "small", 96) as small:
        copies = {"vdb": lab.directory / "there.qcow2", "vdc": small / "there.raw"}
        moving = await start_disk_move(lab, Stage.COPYING, pair=pair, plan=plan, copies=copies)
        await moving.reach()

        fill(small)

        await moving.assert_kept(FAILED, "NO_SPACE", words=("disk vdc", "No space left", f"make room on {moving.destination}"))
        for disk in (1, 2):
            assert moving.guest.console.max_write_gap_s(disk, moving.since_s) < MARGIN_S
        empty(small)
        await moving.assert_moves_now()


@pytest.mark.root
async def test_a_disk_with_more_data_than_the_free_space_is_refused_with_the_numbers(lab_watched: Lab):
    guest = await start_disk_guest(lab_watched, DiskPlan(disks=(cold_disk(lab_watched.directory),)))
    before = await state_of(lab_watched)
    with file_system(lab_watched.directory / "small", 16) as small:
        options = wishes(disks=copied_to(small / "there.qcow2"))

        await assert_refused(lab_watched, guest, "NOT_ENOUGH_SPACE", "vdb", "16 MiB are free", "--dest-path", options=options)

        assert list(small.iterdir()) == []
    await assert_state(lab_watched, before)


# silence and ends of the destination's QEMU


@pytest.mark.parametrize("way", ["psk", pytest.param("tunnel", marks=pytest.mark.matrix)])
async def test_an_nbd_server_that_accepts_and_says_nothing_does_not_freeze_the_guest(way, lab_watched: Lab):
    lab = lab_watched
    guest = await start_disk_guest(lab, DiskPlan(disks=(cold_disk(lab.directory),)))
    before = await state_of(lab)
    copy = lab.directory / "there.qcow2"
    async with steps(lab, wishes(disks=copied_to(copy), tunnel=way == "tunnel")) as by_hand:
        await by_hand.begin_and_prepare()
        since_s = now_s()

        with frozen(await lab.qemu_pid("host-b")):
            half = await by_hand.perform()

        assert half.phase == "Kept"
        assert half.error_reason == "NBD_SILENT", half.error
        assert "NBD server of host-b says nothing" in half.error
    await lab.assert_only_on("host-a", guest)
    await assert_state(lab, before)
    await guest.console.wait_written(20, disk=1)
    guest.assert_no_gap(1.0, since_s)
    assert guest.console.max_write_gap_s(1, since_s) < 1.0
    assert not copy.exists()
    guest.assert_whole()


@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
@pytest.mark.parametrize("stage", [Stage.COPYING, pytest.param(Stage.SENDING, marks=pytest.mark.matrix)])
async def test_a_destination_whose_qemu_is_killed_fails_the_move(stage, way, pair, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, stage, way, pair=pair)
    await moving.reach()

    await moving.kill_destination()

    await moving.assert_kept(FAILED, *REASONS_OF_A_LOST_QEMU, words=(moving.destination,))
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
async def test_a_destination_whose_qemu_is_killed_before_the_copies_are_settled_gives_the_guest_back(way, pair, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, Stage.SETTLING, way, pair=pair)
    async with moving.stopped_for_settling():
        await moving.kill_destination()

    await moving.assert_kept(FAILED, *REASONS_OF_A_LOST_QEMU, words=(moving.destination,))
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
async def test_a_destination_that_is_silent_while_the_copies_are_settled_gives_the_guest_back_in_time(way, pair, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, Stage.SETTLING, way, pair=pair)
    with ExitStack() as silence:
        async with moving.stopped_for_settling() as destination:
            silence.enter_context(frozen(destination))
            since_s = now_s()
        await moving.guest.console.wait_ticks(5)
        moving.guest.assert_no_gap(SETTLING_DOWNTIME_S + 1.0 + MARGIN_S, since_s)

    await moving.assert_kept(FAILED, "DISK_COPY_STALLED", "STANDSTILL_TOO_LONG", words=(moving.destination,))
    await moving.assert_moves_now()


@pytest.mark.matrix
@pytest.mark.parametrize("stage", [Stage.COPYING, Stage.SENDING])
@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
async def test_a_destination_that_goes_silent_fails_the_move_and_not_the_guests_writes(way, pair, stage, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, stage, way, pair=pair)
    await moving.reach()
    silent_at_s = now_s()

    with frozen(await lab_watched.qemu_pid(moving.destination)):
        half = await moving.move.wait_source_phase("Kept", timeout_s=40)
        await moving.guest.console.wait_written(5, disk=1)

    assert half.error_reason == "DISK_COPY_STALLED", half.error
    moving.guest.assert_no_gap(MARGIN_S, silent_at_s)
    assert moving.guest.console.max_write_gap_s(1, silent_at_s) < STALL_LIMIT_S + 3 * MARGIN_S
    await moving.assert_kept(FAILED, "DISK_COPY_STALLED", words=(moving.destination, "no byte has moved"))
    await moving.assert_moves_now()


# wishes


@pytest.mark.parametrize(("way", "pair"), PSK_AND_REST)
@pytest.mark.parametrize("stage", [Stage.COPYING, pytest.param(Stage.SENDING, marks=pytest.mark.matrix)])
async def test_a_cancel_leaves_nothing(stage, way, pair, lab_watched: Lab):
    moving = await start_disk_move(lab_watched, stage, way, pair=pair)
    await moving.reach()

    await moving.move.cancel()

    await moving.assert_kept(CANCELLED, "CANCELLED")
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    await moving.assert_moves_now()


@pytest.mark.matrix
async def test_a_cancel_while_the_copies_are_settled_leaves_one_guest_with_all_its_writes(lab_watched: Lab):
    moving = await start_disk_move(lab_watched, Stage.SETTLING)
    async with moving.stopped_for_settling():
        pass  # the agent goes on, and the cancel comes at whatever moment it comes
    with suppress(Exception):
        await moving.move.cancel()
    outcome = await moving.move.outcome()

    if outcome.state == State.STATE_SUCCEEDED:
        await moving.assert_arrived()
    else:
        await moving.assert_kept(CANCELLED, "CANCELLED")
        await moving.assert_moves_now()


@pytest.mark.matrix
async def test_the_bandwidth_of_disks_is_kept_and_can_be_changed_while_they_are_copied(lab_watched: Lab):
    moving = await start_disk_move(lab_watched, Stage.COPYING)
    await moving.reach()
    while now_s() - moving.since_s < BOUNDED_S:
        await moving.guest.console.wait_ticks(10)
    copied, took_s = await moving.copied_bytes(), now_s() - moving.since_s

    assert copied < SLOW_MIB_S * MIB * took_s + moving.written_bytes() + PIECE_BYTES
    await moving.move.update(disk_bandwidth_mib_s=0)
    outcome = await moving.move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert now_s() - moving.since_s < COLD_MIB / SLOW_MIB_S
    await moving.assert_arrived()
