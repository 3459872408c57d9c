"""How long disks are going to be copied. Pure."""

from __future__ import annotations

from typing import Final

from agent.migration.forecast import Span

# To connect, to look at what is allocated, and to hear that it is done.
SETUP_S: Final = 0.2
# A way carries disks less well than memory, as both images take their time, and how much less nobody measures beforehand.
SLOWER: Final = (1.0, 1.4, 4.0)


def copying(disk_bytes: int, bytes_per_second: Span, bound_bytes_per_second: int) -> Span | None:
    """Say how long it takes to copy so much over a way that carries so much memory; None for nothing.

    Args:
        disk_bytes: what is to be copied.
        bytes_per_second: what was measured of the way.
        bound_bytes_per_second: of the copying; 0 is without.
    """
    if not disk_bytes:
        return None
    quick, usual, slow = (factor / rate for factor, rate in zip(SLOWER, _rates(bytes_per_second), strict=True))
    least = 1 / bound_bytes_per_second if bound_bytes_per_second else 0.0
    low, likely, high = (SETUP_S + disk_bytes * max(each, least) for each in (quick, usual, slow))
    return Span(low - SETUP_S / 2, likely, high)


def _rates(way: Span) -> tuple[float, float, float]:
    return way.high, way.likely, way.low
