"""The fleet's ports and processes, and the demo's proof."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy.demo.console import GuestConsole, GuestSilent
from deploy.lab.ports import PortBlock
from deploy.lab.processes import ProcessFailed, ServerProcess, end_processes_of, processes_of

SLEEPER = (sys.executable, "-S", "-c", "import time; print('ready', flush=True); time.sleep(60)")


@pytest.fixture
def sleeper(tmp_path):
    process = ServerProcess("sleeper", SLEEPER, tmp_path / "sleeper.log", environment={}, cwd=tmp_path)
    process.start()
    yield process
    process.stop()


def test_the_processes_of_a_fleet_are_those_that_write_into_its_directory(sleeper, tmp_path):
    stranger = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    pid = sleeper.pid
    found = processes_of(tmp_path)
    ended = end_processes_of(tmp_path)

    assert found == (pid,)
    assert ended == 1
    assert processes_of(tmp_path) == ()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_process_that_does_not_run_says_its_last_words(tmp_path):
    argv = (sys.executable, "-S", "-c", "raise SystemExit('no such setting')")
    process = ServerProcess("agent-a", argv, tmp_path / "agent-a.log", environment={}, cwd=tmp_path)
    process.start()
    process.stop()

    with pytest.raises(ProcessFailed, match="agent-a does not run"):
        _ = process.pid


def test_two_fleets_never_get_the_same_ports():
    first, second = PortBlock.claim(), PortBlock.claim()

    assert first.server(0) != second.server(0)
    assert first.pool(0).last < first.pool(1).first
    first.close()
    second.close()


LINE = "ferry guest: counter {} pattern ok gen 3 sweep 2\r\n"


def test_the_proof_of_the_demo_shows_the_lines_around_a_counter(tmp_path):
    path = tmp_path / "console.log"
    path.write_text("".join(LINE.format(counter) for counter in range(20)))

    console = GuestConsole(path)

    assert console.counters() == tuple(range(20))
    assert [line.split()[3] for line in console.around(9)] == ["7", "8", "9", "10", "11", "12"]


def test_a_guest_that_began_anew_is_no_proof(tmp_path):
    path = tmp_path / "console.log"
    path.write_text("".join(LINE.format(counter) for counter in (0, 1, 2, 0, 1)))

    with pytest.raises(AssertionError, match="counter 0 after 2"):
        GuestConsole(path).counters()


def test_a_silent_guest_is_told_with_its_last_words(tmp_path):
    path = tmp_path / "console.log"
    path.write_text("Kernel panic\n")

    with pytest.raises(GuestSilent, match="Kernel panic"):
        GuestConsole(path).wait_counter(1, timeout_s=0)
