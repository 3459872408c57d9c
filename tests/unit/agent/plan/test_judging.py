"""What is made of numbers that were measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.plan import dirty_rate, probe
from agent.plan.guest_memory import sample_memory

MIB = 1 << 20
GUEST_BYTES = 256 * MIB


def test_a_guest_that_writes_ever_new_pages_has_all_memory_as_its_working_set():
    found = dirty_rate.judge(40 * MIB, 38 * MIB, 1024 * MIB)

    assert found.bytes_per_second.low < 38 * MIB < found.bytes_per_second.likely < 40 * MIB < found.bytes_per_second.high
    assert found.working_set_bytes == 1024 * MIB


def test_a_guest_that_rewrites_the_same_is_seen_by_the_longer_look_and_may_be_faster_than_it_seems():
    found = dirty_rate.judge(64 * MIB, 32 * MIB, 1024 * MIB)

    assert found.working_set_bytes == 64 * MIB
    assert found.bytes_per_second.high >= 2 * 64 * MIB


def test_an_idle_guest_writes_nothing():
    found = dirty_rate.judge(0, 0, 1024 * MIB)

    assert (found.bytes_per_second.low, found.bytes_per_second.high) == (0, 0)


def test_a_steady_way_carries_what_it_carried():
    way = probe.judge([(0.02 * index, int(0.02 * index * 100 * MIB)) for index in range(1, 50)])

    assert way.bytes_per_second.likely == pytest.approx(100 * MIB, rel=0.05)
    assert way.setup_s == pytest.approx(0.0, abs=0.021)


def test_the_time_until_the_first_byte_is_no_part_of_the_rate():
    way = probe.judge([(1.0 + 0.02 * index, int(0.02 * index * 100 * MIB)) for index in range(1, 50)])

    assert way.bytes_per_second.likely == pytest.approx(100 * MIB, rel=0.05)
    assert way.setup_s == pytest.approx(1.0, abs=0.05)


def test_a_way_that_carries_less_later_is_told_with_both_rates():
    points = [(0.1 * index, index * 10 * MIB) for index in range(1, 11)] + [
        (1 + 0.1 * index, (100 + index) * MIB) for index in range(1, 11)
    ]
    span = probe.judge(points).bytes_per_second

    assert span.low <= 10 * MIB * 1.1
    assert span.high >= 100 * MIB * 0.9


def test_all_at_one_look_is_no_division_by_nothing():
    assert probe.judge([(0.02, 256 * MIB)]).bytes_per_second.likely > 0


@pytest.fixture
def process() -> Iterator[int]:
    """Have a process with as much memory, of which a quarter is not zero and half was never touched."""
    script = (
        f"import mmap, sys; m = mmap.mmap(-1, {GUEST_BYTES}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); quarter = len(m) // 4; "
        "m[:quarter] = b'x' * quarter; m[quarter:2*quarter] = bytes(quarter); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child.pid
        assert child.stdin is not None
        child.stdin.close()


def test_memory_that_is_not_zero_is_found_from_outside_and_none_is_made_by_looking(process: int):
    def resident() -> int:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1])

    before = resident()
    found = sample_memory(process, GUEST_BYTES)

    assert found is not None
    assert found.used_part == pytest.approx(0.25, abs=0.08)
    assert set(found.content) == {ord("x")}
    assert resident() - before < MIB // 4096


def test_a_process_that_is_gone_has_no_memory():
    assert sample_memory(2**22 + 1, GUEST_BYTES) is None
