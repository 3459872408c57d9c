"""The write check over the content of a disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests import disk
from tests.guests.disk import Area
from tests.guests.disk_check import (
    Wanted,
    acknowledged,
    assert_image,
    check_bytes,
    flushed,
    last_writes,
    sector_bytes,
    slot_of,
)
from tests.guests.disk_console import DiskLine

AREA = Area(first_byte=1536, slot_count=8, slot_bytes=1024)
WANTED = Wanted(disk=1, area=AREA, survives=20, issued=24)
SECTOR = 512


def _slot(wanted: Wanted, slot: int, number: int) -> bytes:
    if number == 0:
        return bytes(wanted.area.slot_bytes)
    return b"".join(sector_bytes(wanted, slot, number, index) for index in range(2))


def _content(wanted: Wanted, other: Mapping[int, int] | None = None) -> bytearray:
    """Make what must be there, but for the slots in `other`, which hold another write."""
    numbers = dict.fromkeys(range(wanted.area.slot_count), 0) | last_writes(wanted) | dict(other or {})
    return bytearray(b"".join(_slot(wanted, slot, number) for slot, number in numbers.items()))


def _earlier(wanted: Wanted) -> tuple[int, int]:
    """Find a slot with two writes, and the first of them."""
    last = last_writes(wanted)
    return next((slot_of(number, wanted), number) for number in range(1, 20) if last[slot_of(number, wanted)] != number)


def _whys(content: bytes | bytearray, wanted: Wanted = WANTED) -> list[str]:
    return [wrong.why for wrong in check_bytes(bytes(content), wanted)]


def test_the_last_acknowledged_writes_are_what_must_be_there():
    assert _whys(_content(WANTED)) == []


def test_a_write_that_was_begun_but_not_acknowledged_may_be_there_in_part():
    content = _content(WANTED)
    slot = slot_of(22, WANTED)
    content[slot * 1024 : slot * 1024 + SECTOR] = sector_bytes(WANTED, slot, 22, 0)

    assert _whys(content) == []


def test_an_older_write_is_found():
    slot, number = _earlier(WANTED)

    wrong = list(check_bytes(bytes(_content(WANTED, {slot: number})), WANTED))

    assert [(one.slot, one.sector, one.found, one.why) for one in wrong] == [
        (slot, 0, number, "older"),
        (slot, 1, number, "older"),
    ]
    assert str(wrong[0]) == f"slot {slot} sector 0: expected write {last_writes(WANTED)[slot]}, found {number}: older"


def test_one_wrong_bit_is_found():
    content = _content(WANTED)
    content[slot_of(20, WANTED) * 1024 + 700] ^= 1

    assert _whys(content) == ["torn: the words do not follow from its number"]


def test_zeroes_in_place_of_a_write_are_found():
    assert _whys(_content(WANTED, {slot_of(20, WANTED): 0})) == ["zeroes", "zeroes"]


def test_a_block_in_the_wrong_place_is_found():
    here, there = slot_of(20, WANTED), (slot_of(20, WANTED) + 1) % 8
    content = _content(WANTED)
    content[here * 1024 : here * 1024 + 1024] = _slot(WANTED, there, 20)

    assert _whys(content) == [f"it belongs to disk 1 slot {there} sector {index}" for index in range(2)]


def test_a_write_that_was_never_begun_is_found():
    number = next(number for number in range(25, 99) if slot_of(number, WANTED) == slot_of(20, WANTED))
    content = _content(WANTED, {slot_of(20, WANTED): number})

    assert _whys(content) == ["no such write was begun"] * 2
    assert _whys(content, replace(WANTED, issued=None)) == []


def test_a_slot_without_a_write_is_zero_on_a_blank_disk_and_anything_on_another():
    wanted = replace(WANTED, survives=1, issued=1)
    empty = next(slot for slot in range(8) if slot not in last_writes(wanted))
    content = _content(wanted)
    content[empty * 1024] = 7

    assert _whys(content, wanted) == ["foreign content"]
    assert _whys(content, replace(wanted, area=replace(AREA, is_blank=False))) == []


def test_the_guests_last_word_says_what_must_be_there():
    line = DiskLine(disk=1, issued=9, wrote=7, flushed=5, sweep=0, slowest_us=0, error_count=0, arrived_at_s=0.0)

    assert acknowledged(line, AREA) == Wanted(1, AREA, survives=7, issued=None)
    assert acknowledged(line, AREA, is_final=True) == Wanted(1, AREA, survives=7, issued=9)
    assert flushed(line, AREA) == Wanted(1, AREA, survives=5, issued=None)


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_an_image_is_read_where_its_area_lies(kind: str, tmp_path: Path):
    path = disk.create_image(tmp_path / "disk", 1 << 20, kind=kind)
    disk.write_to_image(path, {AREA.first_byte: bytes(_content(WANTED))}, kind=kind)
    slot, number = _earlier(WANTED)

    assert_image(path, WANTED, kind=kind)
    disk.write_to_image(path, {AREA.first_byte + slot * 1024: _slot(WANTED, slot, number)}, kind=kind)

    with pytest.raises(AssertionError, match=f"2 sectors are wrong:\n  slot {slot} sector 0: .* found {number}: older"):
        assert_image(path, WANTED, kind=kind)


def test_an_image_is_read_through_its_chain(tmp_path: Path):
    base = disk.create_image(tmp_path / "base", 1 << 20)
    disk.write_to_image(base, {AREA.first_byte: bytes(_content(replace(WANTED, survives=12)))}, kind="qcow2")
    top = disk.create_image(tmp_path / "top", 1 << 20, options=f"backing_file={base},backing_fmt=qcow2")
    slots = {slot_of(number, WANTED): number for number in range(13, 21)}
    parts = {AREA.first_byte + slot * 1024: _slot(WANTED, slot, number) for slot, number in slots.items()}
    disk.write_to_image(top, parts, kind="qcow2")

    assert_image(top, WANTED)
    with pytest.raises(AssertionError, match=r"older|zeroes"):
        assert_image(base, WANTED)
