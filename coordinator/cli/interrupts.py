"""Ctrl-C while a migration runs, and the question that follows it.

    watching --Ctrl-C--> asking --Ctrl-C or y--> CancelWished
        ^                  |
        `-------- n -------'

Without a terminal on stdin nobody can be asked: the first Ctrl-C is the wish.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from coordinator.cli.ctrl_c import ctrl_c_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_YES = frozenset({"y", "yes"})
_MAX_ANSWER_BYTES = 4096


class Wish(enum.Enum):
    """What the user said."""

    ASK = "ask"
    CANCEL = "cancel"
    GO_ON = "go on"
    LEAVE = "leave"


def find_terminal() -> int | None:
    """Find the terminal that somebody can answer on; None when stdin is not one."""
    return sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None


class Interrupts:
    """Turns Ctrl-C and typed answers into wishes, while it is entered.

    Args:
        tell: called with each wish, on the event loop. ASK means: write the question now.
        answers_fd: where answers are typed; None if nobody can answer.
    """

    def __init__(self, tell: Callable[[Wish], None], *, answers_fd: int | None) -> None:
        self._tell = tell
        self._answers_fd = answers_fd
        self._is_asking = False
        self._is_cancel_wished = False
        self._taking = ExitStack()

    def __enter__(self) -> Self:
        """Take Ctrl-C over."""
        self._taking.enter_context(ctrl_c_calls(self.press))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Give Ctrl-C back."""
        self._end_line()
        self._stop_asking()
        self._taking.close()

    def press(self) -> None:
        """Take one Ctrl-C."""
        if self._is_cancel_wished:
            self._tell(Wish.LEAVE)
        elif self._is_asking or self._answers_fd is None:
            self._end_line()
            self._wish_cancel()
        else:
            self._is_asking = True
            asyncio.get_running_loop().add_reader(self._answers_fd, self._read_answer, self._answers_fd)
            self._tell(Wish.ASK)

    def answer(self, line: str) -> None:
        """Take the answer to the question."""
        if line.strip().lower() in _YES:
            self._wish_cancel()
        else:
            self._stop_asking()
            self._tell(Wish.GO_ON)

    def _wish_cancel(self) -> None:
        self._stop_asking()
        self._is_cancel_wished = True
        self._tell(Wish.CANCEL)

    def _read_answer(self, fd: int) -> None:
        """Read the line that the terminal has ready; end of file is a no."""
        line = os.read(fd, _MAX_ANSWER_BYTES).decode(errors="replace")
        if not line.endswith("\n"):
            self._end_line()
        self.answer(line)

    def _end_line(self) -> None:
        """End the line of a question that no answer ends."""
        if self._is_asking:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _stop_asking(self) -> None:
        if self._is_asking and self._answers_fd is not None:
            asyncio.get_running_loop().remove_reader(self._answers_fd)
        self._is_asking = False


def ask_at_terminal(question: str) -> bool:
    """Ask a yes-or-no question before anything runs; end of file is a no.

    Raises:
        KeyboardInterrupt: Ctrl-C is the answer. The event loop's own handler would wait for the line first.
    """
    sys.stderr.write(question)
    sys.stderr.flush()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return sys.stdin.readline().strip().lower() in _YES
    finally:
        signal.signal(signal.SIGINT, handler)
