"""QEMU's stamps as instants of a clock that nobody can step.

QEMU stamps its events with the wall clock, which may be set while one is on its way, or between two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from common.clock import boot_s

# Older than that no event is read: what seems so was stamped before the clock was set.
MAX_AGE_S: Final = 60.0
# The two clocks are read one after the other.
_BLUR_S: Final = 0.001


class Stamps:
    """Turns stamps of one QEMU into instants of CLOCK_BOOTTIME."""

    def __init__(self, boot_clock: Callable[[], float] = boot_s, wall_clock: Callable[[], float] = time.time) -> None:
        self._boot_clock = boot_clock
        self._wall_clock = wall_clock
        self._ahead_s = wall_clock() - boot_clock()

    def instant_of(self, stamp_s: float) -> float:
        """Return when an event happened that is read now.

        Where the wall clock was set since the last event the stamp may be from before or after that; the younger one is taken,
        unless it would lie in the future.
        """
        now_s = self._boot_clock()
        before_s, self._ahead_s = self._ahead_s, self._wall_clock() - now_s
        ages_s = [now_s - (stamp_s - ahead_s) for ahead_s in (self._ahead_s, before_s)]
        return now_s - max(min((age_s for age_s in ages_s if -_BLUR_S <= age_s <= MAX_AGE_S), default=0.0), 0.0)
