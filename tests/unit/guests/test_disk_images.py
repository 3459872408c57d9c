"""What the builder of the disk guest puts into its images."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests import disk
from tests.guests.disk import LEFT_ALONE, Area, DiskGuest


def test_a_boot_sector_has_its_parameters_behind_it():
    guest = DiskGuest(areas=(LEFT_ALONE, Area(first_byte=1 << 41, slot_bytes=1536, flush_ms=50.0, depth=3)), memory_mib=2)

    content = disk.boot_sectors(guest)

    assert content[510:512] == b"\x55\xaa"
    assert struct.unpack_from("<4s7I", content, 512) == (b"DISK", 23864, 1, 1, 512, 167772, 2684355, 50)
    assert struct.unpack_from("<QIIIIIHH", content, 1024 + 32) == (1 << 32, 2048, 3, 1789570, 1789570, 2, 3, 1)
    assert len(content) <= disk.BOOT_BYTES


def test_the_same_guest_gives_the_same_image(tmp_path: Path):
    first = disk.build(DiskGuest(), tmp_path)

    assert disk.build(DiskGuest(), tmp_path) == first
    assert disk.build(DiskGuest(seed=2), tmp_path) != first
    assert first.stat().st_size == 1 << 20


def test_a_disk_that_a_guest_boots_from_begins_with_it(tmp_path: Path):
    path = disk.create_image(tmp_path / "disk", 2 << 20, kind="raw", boots=DiskGuest())

    assert path.read_bytes()[: disk.BOOT_BYTES].startswith(disk.boot_sectors(DiskGuest()))
    assert path.stat().st_size == 2 << 20


@pytest.mark.parametrize(
    "guest",
    [
        DiskGuest(areas=()),
        DiskGuest(areas=(Area(),) * 17),
        DiskGuest(period_ms=0.5),
        DiskGuest(areas=(Area(slot_bytes=1000),)),
        DiskGuest(areas=(Area(first_byte=100),)),
        DiskGuest(areas=(Area(depth=17),)),
        DiskGuest(areas=(Area(write_mib_s=1e6),)),
    ],
)
def test_what_the_guest_cannot_keep_is_refused(guest: DiskGuest):
    with pytest.raises(ValueError, match=r"is not within|not whole sectors|more than"):
        disk.boot_sectors(guest)


def test_the_memory_that_the_guest_needs_grows_with_its_disks_and_is_never_a_multiple_of_256_kib():
    small, large = DiskGuest(), DiskGuest(areas=(replace(Area(), slot_bytes=1 << 20, depth=16),) * 16)

    assert small.memory_kib % 256 == large.memory_kib % 256 == 8
    assert large.memory_kib - small.memory_kib >= 16 * 17 * 1024
