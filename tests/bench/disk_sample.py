"""What one measured move with a disk took, and the ways it is made. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.bench import raw
from tests.bench.sample import COMMAND, Moves
from tests.bench.ways import PLAIN, PSK, RAW, RAW_PSK, TUNNEL, FerryWay, RawWay

WAYS: Final[dict[str, RawWay | FerryWay]] = {
    RAW: RawWay(raw.Options()),
    PLAIN: FerryWay(("--plain",), RAW),
    RAW_PSK: RawWay(raw.Options(is_encrypted=True)),
    PSK: FerryWay((), RAW_PSK),
    TUNNEL: FerryWay(("--tunnel",), RAW),
}


@dataclass(frozen=True, slots=True)
class Writes:
    """How slow the guest's own writes were.

    Attributes:
        count: of those that were acknowledged.
        p50_s: half of them were not slower, to a quarter of an octave upwards.
        p99_s: of a hundred, 99 were not slower, to a quarter of an octave upwards.
        slowest_s: the slowest.
    """

    count: int
    p50_s: float
    p99_s: float
    slowest_s: float


@dataclass(frozen=True, slots=True)
class DiskSample:
    """One move of a guest with its disk; seconds.

    Attributes:
        elapsed_s: from `blockdev-add` sent until the guest runs at the destination.
        copy_s: from there until the copy is ready.
        turn_s: from there until `migrate` sent.
        memory_s: from there until the guest stops.
        standstill_s: from there until the guest runs at the destination.
        settle_s: what of it the end of the copy takes, until it is known to be complete.
        qemu_downtime_s: QEMU's `downtime`.
        gap_s: the longest silence of the guest's own ticks around the move.
        wire_bytes: all that went over the connection of the copy, towards the destination.
        allocated_bytes: what the source's image takes on its storage after the move.
        copy_allocated_bytes: what the destination's image takes.
        transferred_bytes: QEMU's `ram.transferred`.
        writes_before: in the seconds before the move.
        writes: while the disk is copied.
        writes_mirrored: from then until the guest stops, while memory is sent.
        command_s: the whole `ferry migrate`; None for raw.
        cpu_s: CPU time that each of Ferry's processes took, by its name.
        agent_resident_bytes: the larger of the two agents after the move; None for raw.
        round_number: moves of one round are compared with each other.
        way: one of `WAYS`.
    """

    elapsed_s: float
    copy_s: float
    turn_s: float
    memory_s: float
    standstill_s: float
    settle_s: float
    qemu_downtime_s: float
    gap_s: float
    wire_bytes: int
    allocated_bytes: int
    copy_allocated_bytes: int
    transferred_bytes: int
    writes_before: Writes
    writes: Writes
    writes_mirrored: Writes
    command_s: float | None = None
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    agent_resident_bytes: int | None = None
    round_number: int = 0
    way: str = ""

    @property
    def wire_ratio(self) -> float:
        """Bytes that were sent for each byte that the disk takes."""
        return self.wire_bytes / self.allocated_bytes

    @property
    def servers_cpu_s(self) -> float:
        """CPU time of agents, tunnels and coordinator."""
        return sum(spent_s for name, spent_s in self.cpu_s.items() if name != COMMAND)


class DiskRun(Moves[DiskSample]):
    """All moves with a disk."""

    @property
    def largest_wire_ratio(self) -> float:
        """The most bytes that any move of Ferry's sent for each byte that the disk takes."""
        return max(sample.wire_ratio for sample in self.samples if isinstance(WAYS[sample.way], FerryWay))
