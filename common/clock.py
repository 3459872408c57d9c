"""Clocks, as a part that tests replace."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where instants come from."""

    def monotonic_s(self) -> float:
        """Return a clock that never jumps, in seconds from an instant that means nothing."""

    def wall_s(self) -> float:
        """Return the host's wall clock in seconds since 1970."""


class SystemClock:
    """The host's own clocks."""

    def monotonic_s(self) -> float:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return CLOCK_REALTIME."""
        return time.time()


def boot_s() -> float:
    """Return CLOCK_BOOTTIME: seconds since the host booted, suspended ones too.

    Nobody can step it, and it outlives a process. Source: clock_gettime(2).
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
