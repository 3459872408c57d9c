"""Disks go along with a guest that writes to them: between all QEMUs, by every way, and together with other wishes."""

from __future__ import annotations

import pytest

from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.binaries import emulator_of, require
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.disk_moves import allocated_bytes, copied_to, places
from tests.e2e.lab import PAUSED, Lab
from tests.e2e.move import WAYS, State, post_copy, wishes
from tests.e2e.waiting import until
from tests.guests.disk import Area

MIB = 1 << 20
DISKS = (
    Disk(),
    Disk(size_mib=32, kind="raw", area=Area(first_byte=512, slot_bytes=1536, flush_ms=0)),
)
# The first host's QEMU, the second's, the way.
TABLE = [
    *[
        pytest.param(pair, way, id=f"{'-'.join(pair)}-{way}")
        for pair, way in (
            (("7.2", "7.2"), "psk"),
            (("10.0", "10.0"), "tunnel"),
            (("7.2", "10.0"), "tunnel"),
            (("10.0", "7.2"), "plain"),
            (("7.2", "11.1"), "psk"),
            (("11.1", "10.0"), "tunnel"),
        )
    ],
    *[
        pytest.param(pair, way, id=f"{'-'.join(pair)}-{way}", marks=pytest.mark.matrix)
        for pair, ways in {
            ("7.2", "7.2"): ("plain", "tunnel", "multifd"),
            ("10.0", "10.0"): ("plain", "psk", "multifd"),
            ("7.2", "10.0"): ("plain", "psk", "multifd"),
            ("10.0", "7.2"): ("psk", "tunnel", "multifd"),
            ("7.2", "11.1"): ("plain", "tunnel", "multifd"),
            ("11.1", "7.2"): ("plain", "psk", "tunnel", "multifd"),
            ("10.0", "11.1"): ("plain", "psk", "tunnel", "multifd"),
            ("11.1", "10.0"): ("plain", "psk", "multifd"),
            ("11.1", "11.1"): ("plain", "psk", "tunnel", "multifd"),
        }.items()
        for way in ways
    ],
]


async def assert_arrived(lab: Lab, guest: WritingGuest, host: str = "host-b") -> None:
    """Fail unless the guest goes on writing on this host alone, and its images there have all that it ever wrote."""
    for target in guest.images:
        await guest.console.wait_written(20, disk=guest.plan.index(target))
    await lab.assert_only_on(host, guest)
    await leave(lab, guest, host)
    guest.assert_whole()
    for target, path in places(guest).items():
        guest.assert_disk(target, path, is_final=True)


@pytest.mark.parametrize(("pair", "way"), TABLE)
async def test_disks_that_are_not_shared_go_along_with_all_that_was_written(pair, way, lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(emulator=emulator_of(pair), disks=DISKS))

    move = await lab.start_move(options=WAYS[way](disks=copied_to(guest)))
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert {disk.disk: disk.is_ready for disk in outcome.progress.disks} == {"vdb": True, "vdc": True}
    assert "settle" in {leg.name for leg in outcome.downtime.legs}
    await assert_arrived(lab, guest)
    for path in places(guest).values():  # of 64 and 32 MiB the guest writes to 8 and 3
        assert allocated_bytes(path) < 12 * MIB


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"post_copy": post_copy()}, id="post-copy"),
        pytest.param({"post_copy": post_copy(), "tunnel": True}, id="post-copy-tunnel", marks=pytest.mark.matrix),
        pytest.param({"pause": True}, id="paused-throughout"),
        pytest.param({"destination_name": "other"}, id="renamed"),
        pytest.param({"multifd": 4, "tunnel": True}, id="multifd-tunnel"),
    ],
)
async def test_disks_go_along_with_other_wishes(options, lab: Lab):
    guest = await start_disk_guest(lab)

    outcome = await (await lab.start_move(options=wishes(**options, disks=copied_to(guest)))).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    name = options.get("destination_name") or guest.name
    await assert_arrived(lab, guest.renamed(name))


async def test_disks_of_a_guest_that_stays_paused_are_whole(lab: Lab):
    guest = await start_disk_guest(lab)

    options = wishes(disks=copied_to(guest), modes=modes_pb.Modes(suspend=True))
    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest, PAUSED)
    await lab.stop_vm("host-b", guest.name)
    for target, path in places(guest).items():
        guest.assert_disk(target, path)


async def test_a_guest_goes_on_from_its_copied_disk_when_it_is_started_anew(lab: Lab):
    """The stored definition names the copy, so the disk that stays behind is not started from by mistake."""
    guest = await start_disk_guest(lab)
    outcome = await (await lab.start_move(options=wishes(disks=copied_to(guest)))).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error

    await leave(lab, guest, "host-b")
    await lab.start_vm("host-b", guest.name)

    argv = (await lab.vm("host-b", guest.name)).argv
    assert any(str(places(guest)["vdb"]) in word for word in argv)
    assert not any(str(guest.images["vdb"]) in word for word in argv)


async def test_a_guest_with_a_copied_disk_goes_back_into_the_image_that_it_left(lab: Lab):
    guest = await start_disk_guest(lab)
    outcome = await (await lab.start_move(options=wishes(disks=copied_to(guest)))).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error

    back = disks_pb.DiskWishes(
        which=disks_pb.DiskWishes.WHICH_NAMED, names=["vdb"], destination_paths={"vdb": str(guest.images["vdb"])}, reuse=True
    )
    outcome = await (await lab.start_move(to="host-a", options=wishes(disks=back), source="host-b")).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_written(20, disk=1)
    await leave(lab, guest, "host-a")
    guest.assert_disk("vdb", is_final=True)


@pytest.mark.parametrize("version", [pytest.param("7.2", marks=pytest.mark.matrix), "10.0"])
async def test_a_guest_that_writes_all_the_time_outlives_every_attempt_that_is_given_up(version, lab: Lab):
    """A mirror that is aborted under a write takes QEMU with it, once in some tries."""
    area = Area(write_mib_s=16.0, verify_mib_s=1.0)
    guest = await start_disk_guest(lab, DiskPlan(emulator=require(version), disks=(Disk(area=area), Disk(area=area))))

    for attempt in range(12):
        disks = copied_to(guest, bandwidth_bytes_per_second=(attempt % 3) * 8 * MIB)
        move = await lab.start_move(options=wishes(bandwidth_mib_s=1, disks=disks))
        phase = "Mirroring" if attempt % 2 else "Transferring"
        await move.wait_source_phase(phase)
        await lab.try_cancel(move)
        outcome = await move.outcome()
        assert outcome.state == State.STATE_CANCELLED, outcome.error
        await until(lambda: not [path for path in places(guest).values() if path.exists()], "no image that was made for it")

    await guest.console.wait_written(20, disk=1)
    await lab.assert_only_on("host-a", guest)
    await leave(lab, guest, "host-a")
    guest.assert_whole()
    for target in guest.images:
        guest.assert_disk(target, is_final=True)
