"""Ctrl-C: it reaches the event loop whenever it comes, and a second one ends what does not end.

Left to `asyncio.run` it can get lost. Python notes a signal and acts on it between two bytecodes. One that comes after the last of
them and before epoll_wait begins is noted, and nothing ends the wait until something else happens. With `add_signal_handler` the
signal itself writes to a socket that the loop reads (`signal.set_wakeup_fd`), and the wait ends at once.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.cli.leaving import is_ctrl_c_ignored, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Of these each may have a meaning for a command: ask, cancel, leave. One more while none was taken: the loop is stuck.
_MOST_UNTAKEN: Final = 3


@dataclass(slots=True)
class _Taker:
    press: Callable[[], None]
    most: int
    is_counting: bool
    count: int = 0


_takers: Final[list[_Taker]] = []


@contextmanager
def ctrl_c_ends() -> Iterator[asyncio.Timeout]:
    """End the block that enters what this gives, with TimeoutError, at the first Ctrl-C; the second ends the process.

    Where Ctrl-C is ignored, as in a shell's background jobs, it stays so.
    """
    loop = asyncio.get_running_loop()
    ending = asyncio.timeout(None)
    if is_ctrl_c_ignored():
        yield ending
        return
    with _taken(_Taker(lambda: ending.reschedule(loop.time()), most=1, is_counting=True)):
        yield ending


@contextmanager
def ctrl_c_calls(press: Callable[[], None]) -> Iterator[None]:
    """Call `press` on the event loop at each Ctrl-C inside; afterwards it is taken as before."""
    with _taken(_Taker(press, most=_MOST_UNTAKEN, is_counting=False)):
        yield


@contextmanager
def _taken(taker: _Taker) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    _takers.append(taker)  # from here on to the end while `_notice` can be called
    if len(_takers) == 1:
        loop.add_signal_handler(signal.SIGINT, _take)
        signal.signal(signal.SIGINT, _notice)
    try:
        yield
    finally:
        if len(_takers) == 1:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, before)
        _takers.remove(taker)


def _notice(_signal: int, _frame: FrameType | None) -> None:
    """Take note of a Ctrl-C, even while the loop is stuck; what it means is left to `_take`."""
    taker = _takers[-1]
    if taker.count == taker.most:
        leave()
    taker.count += 1


def _take() -> None:
    """Take a Ctrl-C on the event loop, which the signal has woken."""
    if _takers:  # else the command has ended since
        taker = _takers[-1]
        if not taker.is_counting:
            taker.count = 0
        taker.press()
