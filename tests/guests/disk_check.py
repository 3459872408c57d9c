"""The write check: does an image hold every write that was acknowledged to the disk guest?

For each slot the image must hold the last acknowledged write there, or a later one that was begun; each sector by
itself, since a write that was not acknowledged may be half there. Anything older, elsewhere or torn is found.
The content is that of `disk_guest/pattern.c`.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.disk import SECTOR_BYTES, SEED, Area
from tests.guests.disk_console import DiskLine

_MAGIC = int.from_bytes(b"FDSK", "little")
_SECTOR = struct.Struct("<128I")
_HEADER = struct.Struct("<6I")
_FILLED_WORDS = 122
_MASK = 0xFFFFFFFF
_ZEROES = bytes(SECTOR_BYTES)
_SHOWN = 8
_LARGEST_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """What must be on a disk.

    Attributes:
        disk: its index.
        area: where it was written.
        survives: each write up to this number must be there.
        issued: no write behind this number was begun; None when the guest may have begun more than it said.
        seed: the guest's.
    """

    disk: int
    area: Area
    survives: int
    issued: int | None = None
    seed: int = SEED


@dataclass(frozen=True, slots=True)
class Wrong:
    """A sector that does not hold what it must.

    Attributes:
        slot: counted from the area's first byte.
        sector: index in the slot.
        expected: number of the write that must be there, or a later one; 0 for none.
        found: the number that stands there; None when it is no sector of this guest.
        why: in words.
    """

    slot: int
    sector: int
    expected: int
    found: int | None
    why: str

    def __str__(self) -> str:
        return f"slot {self.slot} sector {self.sector}: expected write {self.expected}, found {self.found}: {self.why}"


def acknowledged(line: DiskLine, area: Area, *, is_final: bool = False, seed: int = SEED) -> Wanted:
    """Want all that the guest said was acknowledged.

    Args:
        line: the guest's last word.
        area: where it wrote.
        is_final: it was quiet then, and has begun nothing since.
        seed: the guest's.
    """
    return Wanted(line.disk, area, line.wrote, line.issued if is_final else None, seed)


def flushed(line: DiskLine, area: Area, *, seed: int = SEED) -> Wanted:
    """Want what must survive that QEMU or the host dies: all that was flushed."""
    return Wanted(line.disk, area, line.flushed, None, seed)


def check_image(path: Path | str, wanted: Wanted, *, kind: str = "qcow2", in_use: bool = False) -> list[Wrong]:
    """Compare an image, and the chain below it, with what must be there.

    Args:
        path: a file, or any other name that qemu-img opens.
        wanted: what must be there.
        kind: the image's format.
        in_use: a QEMU has it open; its guest must be quiet.

    Raises:
        CalledProcessError: qemu-img cannot read it.
    """
    return list(check_bytes(read_area(path, wanted.area, kind=kind, in_use=in_use), wanted))


def assert_image(path: Path | str, wanted: Wanted, *, kind: str = "qcow2", in_use: bool = False) -> None:
    """Fail unless the image holds what must be there; see `check_image`."""
    if wrong := check_image(path, wanted, kind=kind, in_use=in_use):
        shown = "\n  ".join(str(one) for one in wrong[:_SHOWN])
        raise AssertionError(f"{path}: {len(wrong)} sectors are wrong:\n  {shown}")


def read_area(path: Path | str, area: Area, *, kind: str = "qcow2", in_use: bool = False) -> bytes:
    """Read an area of the disk in an image."""
    length = area.slot_count * area.slot_bytes
    block = SECTOR_BYTES
    while block < _LARGEST_READ_BYTES and (area.first_byte | length) % (block * 2) == 0:
        block *= 2
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "area")
        # fmt: off
        command = (
            "qemu-img", "dd",
            *(("-U",) if in_use else ()),
            "-f", kind,
            "-O", "raw",
            f"bs={block}",
            f"skip={area.first_byte // block}",
            f"count={area.end_byte // block}",  # of the whole disk: qemu-img counts what it skips
            f"if={path}",
            f"of={raw}",
        )
        # fmt: on
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        return raw.read_bytes()[:length].ljust(length, b"\0")


def check_bytes(content: bytes, wanted: Wanted) -> Iterator[Wrong]:
    """Compare the content of an area with what must be there."""
    area = wanted.area
    sectors = area.slot_bytes // SECTOR_BYTES
    last = last_writes(wanted)
    for slot in range(area.slot_count):
        expected = last.get(slot, 0)
        for index in range(sectors):
            at = (slot * sectors + index) * SECTOR_BYTES
            found, why = _judge(content[at : at + SECTOR_BYTES], wanted, slot, index, expected)
            if why:
                yield Wrong(slot, index, expected, found, why)


def last_writes(wanted: Wanted) -> dict[int, int]:
    """Return by slot the last write that must be there."""
    return {slot_of(number, wanted): number for number in range(1, wanted.survives + 1)}


def slot_of(number: int, wanted: Wanted) -> int:
    """Return where a write went."""
    return _mixed(wanted.disk, number, wanted.seed) % wanted.area.slot_count


def sector_bytes(wanted: Wanted, slot: int, number: int, index: int) -> bytes:
    """Return what a write brings to one sector of its slot."""
    seed = wanted.seed
    word = _mixed(_mixed(wanted.disk, slot, seed), _mixed(number, index, seed), seed)
    step = word | 1
    words = ((word + step * count) & _MASK for count in range(1, _FILLED_WORDS + 1))
    return _SECTOR.pack(_MAGIC, seed, wanted.disk, slot, index, number, *words)


def _judge(sector: bytes, wanted: Wanted, slot: int, index: int, expected: int) -> tuple[int | None, str]:
    magic, seed, disk, found_slot, found_index, number = _HEADER.unpack_from(sector)
    if magic != _MAGIC or seed != wanted.seed:
        is_untouched = expected == 0 and (sector == _ZEROES or not wanted.area.is_blank)
        return None, "" if is_untouched else "zeroes" if sector == _ZEROES else "foreign content"
    why = ""
    if (disk, found_slot, found_index) != (wanted.disk, slot, index):
        why = f"it belongs to disk {disk} slot {found_slot} sector {found_index}"
    elif sector != sector_bytes(wanted, slot, number, index):
        why = "torn: the words do not follow from its number"
    elif number < expected:
        why = "older"
    elif number != expected and not _may_be_begun(number, wanted, slot):
        why = "no such write was begun"
    return number, why


def _may_be_begun(number: int, wanted: Wanted, slot: int) -> bool:
    is_begun = wanted.issued is None or number <= wanted.issued
    return is_begun and number > wanted.survives and slot_of(number, wanted) == slot


def _mixed(first: int, second: int, seed: int) -> int:
    mixed = (first * 0x9E3779B1 ^ second * 0x85EBCA77 ^ seed) & _MASK
    mixed = ((mixed ^ mixed >> 15) * 0x2C1B3C6D) & _MASK
    return mixed ^ mixed >> 13
