"""The judgement over a disk guest's console lines."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.guests.disk_console import DiskConsole, DiskLine, DiskStory, Latencies

TICK = b"tick 0 gen 2 sweep 0 ok"


def _line(issued: int, wrote: int, flushed: int, *, slowest_us: int = 0, error_count: int = 0) -> bytes:
    return b"disk 1 issued %d wrote %d flushed %d sweep 3 slowest %d errors %d" % (issued, wrote, flushed, slowest_us, error_count)


def _story(*lines: bytes, may_fail: bool = False) -> DiskStory:
    story = DiskStory(may_fail=may_fail)
    for number, line in enumerate(lines):
        story.feed(line + b"\n", at_s=number / 100)
    return story


def _console(tmp_path: Path, *lines: bytes, may_fail: bool = False) -> DiskConsole:
    console = DiskConsole(tmp_path / "serial.log", may_fail=may_fail)
    for number, line in enumerate(lines):
        console.disks.feed(line + b"\n", at_s=float(number))
    return console


def test_a_line_of_a_disk_keeps_its_numbers():
    story = _story(b"disk 1 sectors 131072", TICK, _line(9, 7, 5, slowest_us=840))

    story.assert_continuous()
    assert story.sector_counts == {1: 131072}
    assert story.lines == {1: [DiskLine(1, 9, 7, 5, 3, 840, 0, 0.02)]}


@pytest.mark.parametrize(
    "lines",
    [
        (_line(9, 7, 5), _line(8, 7, 5)),
        (_line(9, 7, 5), _line(9, 6, 5)),
        (_line(9, 7, 5), _line(9, 7, 4)),
        (_line(9, 10, 5),),
        (_line(9, 7, 8),),
        (_line(9, 7, 5, error_count=1),),
        (b"disk 1 write error 1",),
        (b"disk 1 sectors 131072",),
        (b"BAD disk 1 slot 9 sector 3 expected 17 found 12 at 20",),
    ],
    ids=["begun-back", "written-back", "flushed-back", "not-begun", "not-written", "errors", "error", "reset", "bad"],
)
def test_what_no_single_guest_with_whole_disks_says_is_a_complaint(lines: tuple[bytes, ...]):
    with pytest.raises(AssertionError, match="not whole"):
        _story(TICK, *lines).assert_continuous()


def test_errors_that_are_expected_are_no_complaint():
    _story(TICK, b"disk 1 write error 1", _line(9, 7, 5, error_count=1), may_fail=True).assert_continuous()


def test_the_longest_time_without_an_acknowledged_write_touches_the_time_that_is_asked_for(tmp_path: Path):
    console = _console(tmp_path, _line(1, 0, 0), _line(2, 1, 0), _line(3, 2, 0), _line(4, 2, 0), _line(4, 2, 0), _line(4, 3, 0))

    assert console.max_write_gap_s(1, since_s=2.0, until_s=5.5) == 3.0
    assert console.max_write_gap_s(1, since_s=4.0, until_s=5.5) == 3.0
    assert console.max_write_gap_s(1, since_s=5.0, until_s=12.0) == 7.0


def test_the_slowest_write_is_that_of_the_time_that_is_asked_for(tmp_path: Path):
    console = _console(tmp_path, _line(1, 1, 0, slowest_us=9000), _line(2, 2, 0, slowest_us=4000), _line(3, 3, 0, slowest_us=1000))

    assert console.slowest_write_s(1) == 0.009
    assert console.slowest_write_s(1, since_s=1.0) == 0.004


def test_latencies_are_those_of_the_time_between_two_words_of_the_guest(tmp_path: Path):
    console = _console(tmp_path, b"disk 1 latencies 36:90 40:10", b"disk 1 latencies 36:90 40:10 48:99 60:1")

    assert console.latencies(1, since_s=-1.0, until_s=0.5).percentile_us(50) == 512 * 1.25
    assert console.latencies(1, since_s=0.5).percentile_us(99) == 4096 * 1.25
    assert console.latencies(1, since_s=0.5).percentile_us(100) == 32768 * 1.25
    assert console.latencies(0) == Latencies(Counter())
    assert Latencies(Counter()).percentile_us(50) == 0.0


async def test_waiting_for_writes_means_those_that_are_begun_from_now_on(tmp_path: Path):
    log = tmp_path / "serial.log"
    log.write_bytes(TICK + b"\n" + _line(9, 7, 5) + b"\n")

    with DiskConsole(log) as console:
        await console._wait(lambda: bool(console.lines(1)), "line", 5.0)
        async with asyncio.TaskGroup() as tasks:
            written = tasks.create_task(console.wait_written(disk=1))
            flushed = tasks.create_task(console.wait_flushed(disk=1))
            await asyncio.sleep(0)  # they begin
            with log.open("ab") as file:
                file.write(_line(12, 10, 9) + b"\nferry disk: quiet\n")

        await console.wait_quiet()
        assert (written.result().wrote, flushed.result().flushed) == (10, 9)


async def test_a_wait_in_vain_says_what_was_wanted(tmp_path: Path):
    with DiskConsole(tmp_path / "serial.log") as console, pytest.raises(TimeoutError, match="no 1 written of disk 0"):
        await console.wait_written(timeout_s=0.01)
