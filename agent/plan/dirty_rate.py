"""How fast a guest writes, asked of QEMU before a move: it hashes pages picked at random, waits, and hashes them again.

What it counts are distinct pages, so a longer wait shows where the guest writes the same again and again. Other modes than
page-sampling end QEMU 7.2 under TCG. Source: qapi/migration.json, calc-dirty-rate.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.migration.forecast import Span

if TYPE_CHECKING:
    from agent.qemu.commands import Qemu

SHORT_S: Final = 1
LONG_S: Final = 2
# QEMU's answer scatters by this much either way.
SCATTER: Final = 0.3
# A rate over a longer time that is smaller by this part shows that the guest rewrites what it wrote.
REWRITES_BELOW: Final = 0.75
# A guest that has rewritten its working set within the shorter time may well write faster; this is what is reckoned with.
SATURATED_FACTOR: Final = 3.0
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DirtyRate:
    """What a guest writes.

    Attributes:
        bytes_per_second: new pages each second at first.
        working_set_bytes: what it writes again and again; all of its memory where that does not show.
    """

    bytes_per_second: Span
    working_set_bytes: int


async def measure_dirty_rate(qemu: Qemu, memory_bytes: int) -> DirtyRate:
    """Watch a guest for three seconds; one that stands still writes nothing.

    Raises:
        FerryError: QEMU does not answer, or refuses.
    """
    short = await _measure(qemu, SHORT_S)
    long = await _measure(qemu, LONG_S)
    return judge(short, long, memory_bytes)


def judge(short: float, long: float, memory_bytes: int) -> DirtyRate:
    """Make sense of the rates over the shorter and the longer time, both in bytes per second. Pure."""
    if long >= short * REWRITES_BELOW:
        likely = (short + long) / 2
        return DirtyRate(Span(min(short, long) * (1 - SCATTER), likely, max(short, long) * (1 + SCATTER)), memory_bytes)
    working_set = max(short * SHORT_S, long * LONG_S)
    return DirtyRate(Span(short * (1 - SCATTER), short, short * SATURATED_FACTOR), round(working_set))


async def _measure(qemu: Qemu, seconds: int) -> float:
    await qemu.calc_dirty_rate(seconds)
    async with asyncio.timeout(seconds + _PATIENCE_S):
        while True:
            await asyncio.sleep(_POLL_S)
            rate = await qemu.query_dirty_rate()  # there is no event
            if rate is not None:
                return float(rate)
