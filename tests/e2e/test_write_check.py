"""A guest that writes to its disks all the time, and the check that tells whether an image has all that it wrote."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from tests.e2e.binaries import require
from tests.e2e.disk_guest import GO_ON, Disk, DiskPlan, leave, make_quiet, start_disk_guest
from tests.e2e.lab import Lab
from tests.e2e.letters import tell
from tests.guests.disk import Area

WRITING_S = 3.0
DISKS = (
    Disk(),
    Disk(size_mib=32, kind="raw", area=Area(first_byte=512, slot_bytes=1536, flush_ms=0)),
    Disk(size_mib=48, options="cluster_size=4096", area=Area(slot_count=64, slot_bytes=128 * 1024, write_mib_s=8.0)),
)


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_all_that_a_guest_wrote_is_in_its_images(version, lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(emulator=require(version), disks=DISKS))
    await asyncio.sleep(WRITING_S)  # what the guest writes in this time is what is checked

    await leave(lab, guest, "host-a")

    guest.assert_whole()
    assert {index: count // 2048 for index, count in guest.console.disks.sector_counts.items()} == {0: 1, 1: 64, 2: 32, 3: 48}
    for target in guest.images:
        last = guest.console.last(guest.plan.index(target))
        assert last.issued == last.wrote == last.flushed
        assert last.wrote > 40
        guest.assert_disk(target, is_final=True)


async def test_an_image_from_before_the_last_writes_is_found_out(lab: Lab):
    guest = await start_disk_guest(lab, DiskPlan(disks=(Disk(area=Area(slot_count=16)),)))
    await guest.console.wait_written(100, disk=1)
    await make_quiet(lab, guest, "host-a")
    earlier = shutil.copy(guest.images["vdb"], lab.directory / "earlier.qcow2")
    guest.assert_disk("vdb", is_final=True)
    await tell(lab, "host-a", GO_ON)
    await guest.console.wait_written(20, disk=1)

    await leave(lab, guest, "host-a")

    guest.assert_disk("vdb", is_final=True)
    with pytest.raises(AssertionError, match="older"):
        guest.assert_disk("vdb", earlier)
