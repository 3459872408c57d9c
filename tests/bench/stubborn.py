"""A guest that changes its memory twice as fast as it may be sent: whether its moves keep to what they were allowed."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.bench.guest import tick_guest
from tests.bench.measure import BOOT_TIMEOUT_S, COOL_S, Bench, silence_s
from tests.bench.sample import COMMAND
from tests.guests.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

MEBIBYTES: Final = 64
DIRTY_MIB_S: Final = 64.0
BANDWIDTH_MIB_S: Final = 32
MAX_DURATION_S: Final = 12.0
MAX_DOWNTIME_S: Final = 0.1
_ALLOWED: Final = (
    *("--plain", "--bandwidth", f"{BANDWIDTH_MIB_S}MiB/s"),
    *("--max-duration", f"{MAX_DURATION_S:.0f}s", "--max-downtime", f"{MAX_DOWNTIME_S * 1000:.0f}ms"),
)
SAFE: Final = "safe, abort"
MUST_FINISH: Final = "must-finish, post-copy"
_POLICIES: Final = {
    SAFE: ("--policy", "safe", "--on-timeout", "abort"),
    "must-finish, pause": ("--policy", "must-finish", "--on-timeout", "pause"),
    MUST_FINISH: ("--policy", "must-finish", "--on-timeout", "postcopy"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How one move ended.

    Attributes:
        policy: a key of the policies.
        has_moved: whether the guest went over.
        transfer_s: from the start of the transfer to its end.
        standstill_s: from the guest's stop to its start at the destination; 0 when it stayed.
        gap_s: the longest silence of the guest's own ticks.
        servers_cpu_share: CPU time of agents, tunnels and coordinator, each second of the command; 1.0 is a core.
    """

    policy: str
    has_moved: bool
    transfer_s: float
    standstill_s: float
    gap_s: float
    servers_cpu_share: float


class Endings:
    """All moves of the stubborn guest."""

    def __init__(self, endings: Sequence[Ending]) -> None:
        self.all = tuple(endings)

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies tried, in order."""
        return tuple(dict.fromkeys(ending.policy for ending in self.all))

    def of(self, policy: str) -> tuple[Ending, ...]:
        """Give the moves under one policy."""
        return tuple(ending for ending in self.all if ending.policy == policy)

    @property
    def has_kept_promise(self) -> bool:
        """Whether each move that had to finish did, inside its duration, without a longer standstill than allowed."""
        return all(
            ending.has_moved and ending.transfer_s <= MAX_DURATION_S and ending.standstill_s <= MAX_DOWNTIME_S
            for ending in self.of(MUST_FINISH)
        )

    @property
    def cpu_share(self) -> float:
        """Median CPU of Ferry's servers while a direct transfer runs, as a share of a core."""
        return median(ending.servers_cpu_share for ending in self.of(SAFE))


async def measure(bench: Bench, directory: Path, rounds: int) -> Endings:
    """Move the guest under each policy, in turns."""
    return Endings([await _move(bench, directory, policy) for _ in range(rounds) for policy in _POLICIES])


async def _move(bench: Bench, directory: Path, policy: str) -> Ending:
    await asyncio.sleep(COOL_S)
    with tempfile.TemporaryDirectory(prefix="fb", dir=directory) as name:
        guest = tick_guest(MEBIBYTES, DIRTY_MIB_S)(Path(name))
        with Console(guest.serial) as console:
            async with bench.guest(guest, console):
                await console.wait_ticks(timeout_s=BOOT_TIMEOUT_S)
                began_s = time.monotonic()
                migration, cpu_s = await bench.migrate(*_ALLOWED, *_POLICIES[policy])
                ended_s = time.monotonic()
                return Ending(
                    policy,
                    has_moved=migration.state == pb.Migration.STATE_SUCCEEDED,
                    transfer_s=migration.progress.elapsed.ToTimedelta().total_seconds(),
                    standstill_s=migration.downtime.total.ToTimedelta().total_seconds(),
                    gap_s=await silence_s(console, began_s, ended_s),
                    servers_cpu_share=sum(s for server, s in cpu_s.items() if server != COMMAND) / (ended_s - began_s),
                )
