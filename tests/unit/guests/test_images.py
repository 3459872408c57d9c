"""What the builders of the test guests put into their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guests import linux, tick


def test_an_image_is_a_boot_sector_with_its_parameters_behind_it(tmp_path: Path) -> None:
    image = tick.build(2, dirty_mib_s=1.0, period_ms=10.0, seed=77, directory=tmp_path)

    content = image.read_bytes()
    words = [int.from_bytes(content[at : at + 4], "little") for at in range(516, 552, 4)]
    assert content[510:512] == b"\x55\xaa"
    assert content[512:516] == b"TICK"
    assert words == [512, 167772, 335544, 11932, 1, 146, 77, 2, 0]


def test_the_same_parameters_give_the_same_image(tmp_path: Path) -> None:
    first = tick.build(2, directory=tmp_path)
    written_at_ns = first.stat().st_mtime_ns

    second = tick.build(2, directory=tmp_path)

    assert (second, second.stat().st_mtime_ns) == (first, written_at_ns)
    assert tick.build(3, directory=tmp_path) != first


@pytest.mark.parametrize(
    ("megabytes", "dirty_mib_s", "period_ms"),
    [(0, 1.0, 10.0), (4096, 1.0, 10.0), (16, -1.0, 10.0), (16, 1e6, 100.0), (16, 1.0, 0.1)],
)
def test_parameters_that_the_guest_cannot_keep_are_refused(
    megabytes: int, dirty_mib_s: float, period_ms: float, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is not within|more than"):
        tick.build(megabytes, dirty_mib_s, period_ms, directory=tmp_path)


def test_the_memory_that_a_guest_needs_is_never_a_multiple_of_256_kib() -> None:
    assert [tick.memory_kib(megabytes) % 256 for megabytes in (1, 16, 64)] == [8, 8, 8]
    assert linux.MEMORY_KIB % 256 == 8


def test_the_initrd_holds_the_program_and_the_modules_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "button.ko").write_bytes(b"module")

    archive = linux.build(modules=tmp_path).read_bytes()

    names = re.findall(rb"070701[0-9A-F]{104}([^\0]+)\0", archive)
    assert names == [b"dev", b"proc", b"dev/console", b"init", b"button.ko", b"TRAILER!!!"]


def test_the_command_line_carries_what_the_program_reads() -> None:
    line = linux.command_line(128, 20.0, 10.0, seed=3)

    assert line.endswith(" ferry.dirty_mib=128 ferry.rate_mib_s=20.0 ferry.verify_mib_s=128 ferry.period_ms=10.0 ferry.seed=3")
