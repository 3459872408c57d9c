"""Whether somebody drives one half of a migration: a coordinator, or a client that does so by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.migration.clocks import now_s


class Attention:
    """Since when nobody has asked about a half; an agent that starts has been asked at that moment."""

    def __init__(self) -> None:
        self._last_s = now_s()
        self._stream_count = 0

    def note(self) -> None:
        """Somebody asks."""
        self._last_s = now_s()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Somebody looks on for as long as the block lasts."""
        self._stream_count += 1
        try:
            yield
        finally:
            self._stream_count -= 1
            self._last_s = now_s()

    @property
    def missing_s(self) -> float:
        """For how many seconds nobody has asked; 0 while somebody looks on."""
        return 0.0 if self._stream_count else now_s() - self._last_s
