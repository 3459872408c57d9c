"""What `ferry plan` says of a move, beside what the move then takes."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from deploy.lab.processes import ProcessFailed
from tests.bench.guest import NAME, Make, linux_guest, tick_guest
from tests.bench.measure import BOOT_TIMEOUT_S, COOL_S, DESTINATION, Bench
from tests.guests.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.fleet import Fleet

_BUSY: Final = ("--bandwidth", "48MiB/s", "--max-downtime", "300ms")
# The guest, and the options of its move.
WORKLOADS: Final[dict[str, tuple[Make, tuple[str, ...]]]] = {
    "256 MiB, plain": (tick_guest(256), ("--plain",)),
    "256 MiB, PSK": (tick_guest(256), ()),
    "256 MiB, tunnel": (tick_guest(256), ("--tunnel",)),
    "256 MiB, PSK, 4 channels": (tick_guest(256), ("--multifd", "4")),
    "512 MiB, plain, 100 MiB/s": (tick_guest(512), ("--plain", "--bandwidth", "100MiB/s")),
    "Linux, PSK": (linux_guest, ()),
    "Linux, tunnel": (linux_guest, ("--tunnel",)),
    "96 MiB, writes 16 MiB/s, sent at 48 MiB/s": (tick_guest(96, 16.0), ("--plain", *_BUSY)),
    "64 MiB, writes 40 MiB/s, sent at 48 MiB/s, fast": (tick_guest(64, 40.0), ("--policy", "fast", *_BUSY)),
    "64 MiB, writes 96 MiB/s, sent at 48 MiB/s, post-copy": (
        tick_guest(64, 96.0),
        ("--plain", "--policy", "must-finish", "--max-duration", "10s", "--on-timeout", "postcopy", *_BUSY),
    ),
}


@dataclass(frozen=True, slots=True)
class Foresight:
    """One plan and its move; seconds.

    Attributes:
        planning_s: what the plan itself took.
    """

    workload: str
    low_s: float
    likely_s: float
    high_s: float
    actual_s: float
    planning_s: float

    @property
    def is_inside(self) -> bool:
        """Whether the move took what was predicted."""
        return self.low_s <= self.actual_s <= self.high_s

    @property
    def error(self) -> float:
        """How far off the likely duration was, as a part of the actual one."""
        return abs(self.likely_s - self.actual_s) / self.actual_s


async def measure(bench: Bench, fleet: Fleet, rounds: int) -> tuple[Foresight, ...]:
    """Plan and move each workload, in turns."""
    return tuple([await _move(bench, fleet, workload) for _ in range(rounds) for workload in WORKLOADS])


def inside_share(all_of_them: Sequence[Foresight]) -> float:
    """Give the part of the moves that took what was predicted."""
    return sum(one.is_inside for one in all_of_them) / len(all_of_them)


def median_error(all_of_them: Sequence[Foresight]) -> float:
    """Give the median error of the likely duration."""
    return median(one.error for one in all_of_them)


async def _move(bench: Bench, fleet: Fleet, workload: str) -> Foresight:
    make, options = WORKLOADS[workload]
    await asyncio.sleep(COOL_S)
    with tempfile.TemporaryDirectory(prefix="fb", dir=fleet.directory) as name:
        guest = make(Path(name))
        with Console(guest.serial) as console:
            async with bench.guest(guest, console):
                await console.wait_ticks(timeout_s=BOOT_TIMEOUT_S)
                await asyncio.sleep(COOL_S)
                began_s = time.monotonic()
                done = await asyncio.to_thread(fleet.ferry, "plan", NAME, "--to", DESTINATION, *options, "--output", "json")
                planning_s = time.monotonic() - began_s
                if done.returncode != 0:
                    raise ProcessFailed(f"ferry plan, {workload}: {done.stderr}{done.stdout}")
                predicted = json.loads(done.stdout)["forecast"]["duration_seconds"]
                await asyncio.sleep(COOL_S)
                migration, _ = await bench.migrate(*options)
    return Foresight(
        workload,
        predicted["low"],
        predicted["likely"],
        predicted["high"],
        migration.progress.elapsed.ToTimedelta().total_seconds(),
        planning_s,
    )
