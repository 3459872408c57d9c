"""A QEMU that has work is told from one that waits for others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.qemu.threads import Thread, find_threads, is_working


@pytest.mark.parametrize(
    ("main", "others", "expected"),
    [
        ("S", {}, False),
        ("R", {}, True),
        ("D", {}, True),
        ("T", {}, False),
        ("S", {"CPU 0/TCG": "R", "live_migration": "S"}, False),
        ("S", {"CPU 0/TCG": "S", "live_migration": "R"}, True),
        ("S", {"qemu-system-x86": "R"}, False),
    ],
    ids=["waits", "runs", "reads", "held", "vcpu", "migration", "nameless"],
)
def test_work_is_that_of_the_main_thread_or_of_another_that_runs_no_vcpu(main, others, expected):
    threads = (Thread("qemu-system-x86", main, is_main=True), *(Thread(name, others[name], is_main=False) for name in others))

    assert is_working(threads) is expected


def test_the_threads_of_a_process_are_found_and_none_of_one_that_is_gone():
    with subprocess.Popen([sys.executable, "-S", "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [thread] = find_threads(process.pid)
        assert thread.name.startswith("python")
        assert thread.is_main

        process.kill()
        process.wait()

        assert find_threads(process.pid) == ()
