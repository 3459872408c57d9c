"""The guest of the disk benchmark: 1 GiB of memory, and a disk of 1 GiB with 256 MiB in it that it writes to."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import raw
from tests.bench.guest import DOMAIN, MACHINE, NAME, Guest
from tests.guests.disk import Area, DiskGuest, create_image, write_to_image

TARGET: Final = "vda"
WRITE_MIB_S: Final = 1.0
BEFORE_S: Final = 2.0  # in which it is watched before its move
_MIB: Final = 1 << 20
_DISK_BYTES: Final = 1024 * _MIB
# 256 MiB in pieces of 4 MiB, with holes of 12 MiB between them; the guest writes in the first hole.
_PIECE_BYTES: Final = 4 * _MIB
_PIECES_AT: Final = tuple(range(12 * _MIB, _DISK_BYTES, 16 * _MIB))
# With its firmware, its buffers and itself this makes 1 GiB; all of it is a pattern that does not compress, and hardly changes.
_GUEST: Final = DiskGuest(
    areas=(Area(first_byte=_MIB, slot_count=2048, slot_bytes=4096, write_mib_s=WRITE_MIB_S, verify_mib_s=0.5, flush_ms=100.0),),
    period_ms=5.0,
    memory_mib=1006,
    dirty_mib_s=0.5,
    sweeps_per_s=0.001,
    latencies_ms=100.0,
)
_DISK: Final = """\
<disk type="file" device="disk">
      <driver name="qemu" type="qcow2"/>
      <source file="{image}"/>
      <target dev="vda" bus="virtio"/>
    </disk>"""


@dataclass(frozen=True, slots=True)
class DiskMove:
    """A guest whose disk is to be copied, to be moved once.

    Attributes:
        guest: as it runs at the source.
        arriving: the same with the copy as its disk; its image has yet to be made.
        image: its disk.
        copy: where the copy of that goes.
    """

    guest: Guest
    arriving: raw.Guest
    image: Path
    copy: Path


def make_disk(directory: Path) -> Path:
    """Make the image that each guest gets a copy of."""
    image = create_image(directory / "disk.qcow2", _DISK_BYTES, boots=_GUEST)
    write_to_image(image, {at: secrets.token_bytes(_PIECE_BYTES) for at in _PIECES_AT}, kind="qcow2")
    return image


def disk_guest(directory: Path, disk: Path) -> DiskMove:
    """Make a guest with a copy of that image."""
    image, copy, serial = directory / "disk.qcow2", directory / "copy.qcow2", directory / "serial.log"
    shutil.copyfile(disk, image)
    domain = DOMAIN.format(
        name=NAME, memory_kib=_GUEST.memory_kib, machine=MACHINE, boot="", devices=_DISK.format(image=image), serial=serial
    )
    here, there = (raw.disk_guest(one, _GUEST.memory_kib, serial, machine=MACHINE) for one in (image, copy))
    return DiskMove(Guest(here, domain.encode(), serial), there, image, copy)


def make_copy(move: DiskMove) -> None:
    """Make the image at the destination, as `ferry migrate` does by itself."""
    create_image(move.copy, _DISK_BYTES)


def allocated_bytes(image: Path) -> int:
    """Say what an image takes on its storage."""
    return image.stat().st_blocks * 512
