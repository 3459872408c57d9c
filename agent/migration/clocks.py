"""When things happened, on a clock that nobody can step and that outlives the agent: CLOCK_BOOTTIME.

Spans and deadlines are differences of its instants, never of the wall clock, which is for people to read alone. An instant means
something in one boot of the host, so a record says of which boot its instants are.
"""

from __future__ import annotations

import time

from agent.migration.progress import Era
from agent.vm.running import read_boot_id
from common.clock import boot_s


def now_s() -> float:
    """Return the present instant."""
    return boot_s()


def now_era() -> Era:
    """Return what `now_s` counts from."""
    return Era(read_boot_id(), _ahead_s())


def wall_s() -> float:
    """Return the wall clock of this host, to be shown."""
    return time.time()


def wall_of(at_s: float) -> float:
    """Return what to show of an instant: the wall clock as it would have been, had it been set as it is now."""
    return at_s + _ahead_s()


def _ahead_s() -> float:
    return time.time() - boot_s()
