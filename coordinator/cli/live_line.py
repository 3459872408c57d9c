"""How far a job is, in one line on a terminal's stderr that is written over; nothing elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from coordinator.cli.screen import printable

if TYPE_CHECKING:
    from coordinator.cli.screen import Screen


class LiveLine:
    """The line, empty before and after."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._is_live = screen.notes.is_terminal

    def __enter__(self) -> Self:
        """Nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave an empty line."""
        self._write("")

    def show(self, text: str) -> None:
        """Show a text, as far as there is room for it, in place of the one before."""
        self._write(text[: self._screen.notes.width - 1])

    def note(self, text: str) -> None:
        """Write a line that stays."""
        self._write("")
        self._screen.note(text)

    def _write(self, text: str) -> None:
        if self._is_live:
            sys.stderr.write(f"\r\x1b[2K{printable(text)}")
            sys.stderr.flush()
