"""Ctrl-C ends a command whenever it comes, and twice whatever the command does."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from coordinator.cli.ctrl_c import ctrl_c_calls, ctrl_c_ends
from coordinator.cli.exits import ExitCode

LONG_S = 10.0


@pytest.fixture(autouse=True)
def _taken_by_python() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class SignalledTooLate(selectors.DefaultSelector):
    """Has a signal noted when the wait for events has begun: by another thread, which gets to run when that gives up the GIL."""

    def __init__(self) -> None:
        super().__init__()
        self._is_waiting = threading.Event()
        self._signaller = threading.Thread(target=self._signal)
        self._signaller.start()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > LONG_S / 2:
            self._is_waiting.set()
        return super().select(timeout)

    def close(self) -> None:
        self._is_waiting.set()
        self._signaller.join()
        super().close()

    def _signal(self) -> None:
        self._is_waiting.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.fixture
def _no_forced_switch() -> Iterator[None]:
    """Let a thread run only when another gives up the GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(LONG_S)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_no_forced_switch")
def test_a_signal_that_comes_when_the_wait_for_events_has_begun_is_not_lost():
    async def command() -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with ctrl_c_ends() as ending, pytest.raises(TimeoutError):
            async with ending:
                await asyncio.sleep(LONG_S)
        return loop.time() - began_s

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(SignalledTooLate())) as runner:
        took_s = runner.run(command())

    assert took_s < LONG_S / 2


async def test_who_takes_ctrl_c_inside_another_gives_it_back():
    taken: asyncio.Queue[str] = asyncio.Queue()
    before = signal.getsignal(signal.SIGINT)

    with ctrl_c_calls(lambda: taken.put_nowait("outer")):
        with ctrl_c_calls(lambda: taken.put_nowait("inner")):
            os.kill(os.getpid(), signal.SIGINT)
            inside = await taken.get()
        os.kill(os.getpid(), signal.SIGINT)
        outside = await taken.get()

    assert (inside, outside) == ("inner", "outer")
    assert signal.getsignal(signal.SIGINT) is before


async def test_one_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with ctrl_c_ends() as ending:
        async with ending:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)

    assert not ending.expired()


STUBBORN = """
import asyncio, os, signal
from coordinator.cli.ctrl_c import ctrl_c_calls, ctrl_c_ends

def press():
    os.kill(os.getpid(), signal.SIGINT)

async def stubborn():
    with ctrl_c_ends() as ending:
        async with ending:
            press()
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                press()

async def stuck():
    with ctrl_c_calls(lambda: None):
        for _ in range(4):
            press()
"""


@pytest.mark.parametrize("kind", ["stubborn", "stuck"])
def test_what_does_not_end_is_ended_by_one_more(kind):
    assert _code_of(f"{STUBBORN}\nasyncio.run({kind}())") == ExitCode.INTERRUPTED


def test_ctrl_c_while_modules_are_imported_ends_without_a_traceback():
    script = """
import os, signal, sys
from coordinator.cli.__main__ import main

class PressesCtrlC:
    def find_spec(self, name, path, target=None):
        os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, PressesCtrlC())
main()
"""
    assert _code_of(script) == ExitCode.INTERRUPTED


def _code_of(script: str) -> int:
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    return done.returncode
