"""When things happened, on the source's wall clock as QEMU stamps it.

QEMU stamps events with the host's wall clock, so the agent takes its own instants of the same clock. A monotonic clock would not
outlive the agent; a step of the wall clock within the milliseconds of a hand-over is the lesser evil.
"""

from __future__ import annotations

import time


def now_s() -> float:
    """Return the wall clock of this host in seconds."""
    return time.time()
