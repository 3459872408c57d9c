"""A QEMU that has work is told from one that waits for others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.qemu.threads import is_working

# Each argument is a thread, `name` or `name!` for one that never rests; the main thread waits for a peer, or is `main!`.
_SCRIPT = """
import ctypes, os, socket, sys, threading
ends = socket.socketpair()
def work(name):
    ctypes.CDLL(None).prctl(15, name.rstrip("!").encode())  # PR_SET_NAME
    os.write(1, b".")
    while name.endswith("!"):
        pass
    ends[0].recv(1)
for name in sys.argv[1:]:
    if name != "main!":
        threading.Thread(target=work, args=(name,), daemon=True).start()
os.write(1, b".")
while "main!" in sys.argv:
    pass
ends[1].recv(1)
"""


def _main_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        ((), False),
        (("main!",), True),
        (("CPU 0/TCG!", "live_migration"), False),
        (("CPU 0/TCG", "live_migration!"), True),
        (("nameless!",), False),
    ],
    ids=["all wait", "main", "vcpu", "migration", "nameless"],
)
def test_work_is_that_of_the_main_thread_or_of_another_that_runs_no_vcpu(threads, expected):
    with subprocess.Popen([sys.executable, "-S", "-c", _SCRIPT, *threads], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in {*threads, "main!"}:
            process.stdout.read(1)
        while (_main_state(process.pid) == "S") is ("main!" in threads):
            os.sched_yield()

        assert is_working(process.pid) is expected
        process.kill()


def test_a_process_that_is_gone_does_not_work():
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()

        assert not is_working(process.pid)
