"""A process is known by its pid and its start, and its end is noticed at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from agent.qemu.identity import NoSuchProcess, ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def grandchild() -> Iterator[int]:
    """A process that is not ours to wait for."""
    script = "sleep 60 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        yield int(shell.stdout.readline())
        shell.wait()


def test_a_running_process_is_alive_and_itself(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)

    assert identity.is_alive()
    assert identity == ProcessIdentity.of(sleeper.pid)
    assert not identity.is_stopped()


def test_a_process_with_the_same_pid_and_another_start_is_another(sleeper):
    other = ProcessIdentity(sleeper.pid, ProcessIdentity.of(sleeper.pid).start_time_ticks - 1)

    assert not other.is_alive()
    assert not other.send_signal(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_zombie_is_not_alive(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert not identity.is_alive()


def test_a_stopped_process_says_so(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)

    assert identity.is_stopped()
    assert identity.is_alive()


def test_a_pid_that_nobody_has_is_an_error(sleeper):
    sleeper.kill()
    sleeper.wait()

    with pytest.raises(NoSuchProcess):
        ProcessIdentity.of(sleeper.pid)


async def test_the_end_of_a_process_that_is_not_our_child_is_noticed_within_milliseconds(grandchild):
    identity = ProcessIdentity.of(grandchild)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(identity.wait_exit())
        await asyncio.sleep(0)
        assert not waiting.done()

        os.kill(grandchild, signal.SIGKILL)
        killed_s = time.monotonic()
        await waiting

    assert time.monotonic() - killed_s < 0.1


async def test_waiting_for_a_process_that_has_ended_returns_at_once(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    sleeper.kill()
    sleeper.wait()

    await identity.wait_exit()
    assert not identity.send_signal(signal.SIGTERM)
