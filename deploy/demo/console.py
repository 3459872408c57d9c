"""What the demo's guest has written on its console, as proof that it is one guest and never began anew."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.guests.console import Story

if TYPE_CHECKING:
    from pathlib import Path

_POLL_S = 0.1
_SHOWN_LINES = 3


class GuestSilent(Exception):
    """The guest did not say what was waited for."""


class GuestConsole:
    """The file that the guest's serial line goes to, whichever host the guest is on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def counters(self) -> tuple[int, ...]:
        """Give every counter so far.

        Raises:
            AssertionError: a number is missing or came twice, or the guest found wrong memory.
        """
        story = Story()
        story.feed(self._read(), 0.0)
        if story.ticks:
            story.assert_continuous()
        return tuple(tick.counter for tick in story.ticks)

    def wait_counter(self, least: int, timeout_s: float) -> int:
        """Wait until the guest has counted that far.

        Raises:
            GuestSilent: it has not in time; the text ends with its last words.
            AssertionError: as for `counters`.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            counters = self.counters()
            if counters and counters[-1] >= least:
                return counters[-1]
            if time.monotonic() > deadline_s:
                words = "\n  ".join(self._lines()[-_SHOWN_LINES:]) or "(nothing)"
                raise GuestSilent(f"the guest has not counted to {least} in {timeout_s:.0f} s; it said last:\n  {words}")
            time.sleep(_POLL_S)

    def around(self, counter: int) -> list[str]:
        """Give the lines that count up to `counter`, and the first ones after it."""
        lines = [line for line in self._lines() if "counter " in line]
        after = next((index for index, line in enumerate(lines) if f"counter {counter + 1} " in line), len(lines))
        return lines[max(0, after - _SHOWN_LINES) : after + _SHOWN_LINES]

    def _lines(self) -> list[str]:
        return self._read().decode(errors="replace").splitlines()

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
