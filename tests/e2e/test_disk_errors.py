"""Errors of storage while disks are copied: of the guest's own disk, and of the destination's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.disk_guest import Disk, DiskPlan
from tests.e2e.disk_stages import AREA, MIB, Stage, file_system, start_disk_move
from tests.e2e.lab import Lab
from tests.e2e.move import State

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SIZE_MIB = 64
GOOD_MIB = 16
MARGIN_S = 2.0


@contextmanager
def block_device(path: Path) -> Iterator[Path]:
    """Give a block device of `SIZE_MIB` on a sparse file."""
    path.write_bytes(b"")
    os.truncate(path, SIZE_MIB * MIB)
    found = subprocess.run(["losetup", "--find", "--show", path], check=True, capture_output=True, text=True)
    device = Path(found.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def enlarge(file_system: Path) -> None:
    """Make room for the whole disk."""
    subprocess.run(["mount", "-o", f"remount,size={2 * SIZE_MIB}m", file_system], check=True)


async def test_a_source_disk_that_cannot_be_read_fails_the_move_and_the_guest_writes_on(lab_watched: Lab):
    lab = lab_watched
    storage = lab.directory / "storage"
    with block_device(storage) as device:
        plan = DiskPlan(disks=(Disk(size_mib=SIZE_MIB, kind="raw", area=AREA, path=device),))
        moving = await start_disk_move(lab, Stage.COPYING, plan=plan, copy=lab.directory / "there.raw")
        await moving.reach()

        os.truncate(storage, GOOD_MIB * MIB)  # what the device reads behind it fails
        await lab.update_until_accepted(moving.move, bandwidth_mib_s=0, disk_bandwidth_mib_s=0)

        await moving.assert_kept(State.STATE_FAILED, "DISK_COPY_FAILED", words=("vdb", "Input/output error", "reading it failed"))
        assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
        os.truncate(storage, SIZE_MIB * MIB)
        await moving.assert_moves_now()


@pytest.mark.matrix
async def test_a_destination_disk_that_cannot_be_written_fails_the_move(lab_watched: Lab):
    """A device takes writes into the host's memory, and fails when they are flushed."""
    lab = lab_watched
    source = lab.directory / "vdb.raw"
    source.write_bytes(bytes(17 * MIB) + b"\x07" * ((SIZE_MIB - 17) * MIB))
    with file_system(lab.directory / "small", 32) as small, block_device(small / "storage") as device:
        plan = DiskPlan(disks=(Disk(size_mib=SIZE_MIB, kind="raw", area=AREA, path=source),))
        moving = await start_disk_move(lab, Stage.ALL, plan=plan, copy=device, reuse=True)

        await moving.assert_kept(State.STATE_FAILED, "DISK_COPY_FAILED", words=("vdb", "Input/output error", "storage there"))
        assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
        enlarge(small)
        await moving.assert_moves_now()
