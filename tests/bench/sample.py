"""What one measured move took, and what a run of them comes to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, Protocol, TypeVar

TUNNELS = ("tunnel-a", "tunnel-b")
COMMAND = "command"
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Sample:
    """One move of one guest.

    Attributes:
        elapsed_s: from `migrate` sent until the guest runs at the destination; of post-copy until all of its memory is there.
        transferred_bytes: QEMU's `ram.transferred`.
        qemu_downtime_s: QEMU's `downtime`.
        gap_s: the longest silence of the guest's own ticks around the move.
        own_downtime_s: STOP to `migrate-continue` sent, and `completed` to Resume answered (raw: to RESUME).
        legs_s: the parts of the downtime: `stop`, `device`, `resume`.
        command_s: the whole `ferry migrate`; None for raw.
        cpu_s: CPU time that each of Ferry's processes took, by its name.
        agent_resident_bytes: the larger of the two agents after the move; None for raw.
        round_number: moves of one round are compared with each other.
        way: one of `ways.WAYS`.
    """

    elapsed_s: float
    transferred_bytes: int
    qemu_downtime_s: float
    gap_s: float
    own_downtime_s: float
    legs_s: Mapping[str, float]
    command_s: float | None = None
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    agent_resident_bytes: int | None = None
    round_number: int = 0
    way: str = ""

    @property
    def bytes_s(self) -> float:
        """Bytes each second of the whole time."""
        return self.transferred_bytes / self.elapsed_s

    @property
    def servers_cpu_s(self) -> float:
        """CPU time of agents, tunnels and coordinator."""
        return sum(spent_s for name, spent_s in self.cpu_s.items() if name != COMMAND)

    @property
    def tunnels_cpu_s_per_gb(self) -> float:
        """CPU time of both tunnels for each 10^9 bytes."""
        return sum(self.cpu_s.get(name, 0.0) for name in TUNNELS) * _GB / self.transferred_bytes


class Measured(Protocol):
    """What a run needs of a measured move."""

    @property
    def way(self) -> str:
        """How it was made."""

    @property
    def round_number(self) -> int:
        """Moves of one round are compared with each other."""


S = TypeVar("S", bound=Measured)


class Moves(Generic[S]):
    """All moves of a benchmark of one kind."""

    def __init__(self, samples: Sequence[S]) -> None:
        self.samples = tuple(samples)

    def of(self, way: str) -> tuple[S, ...]:
        """Give the moves of one way, in order of their rounds."""
        return tuple(sample for sample in self.samples if sample.way == way)

    def median(self, way: str, figure: Callable[[S], float]) -> float:
        """Give the median of a figure over the moves of one way."""
        return median(figure(sample) for sample in self.of(way))

    def ratio(self, way: str, to: str, figure: Callable[[S], float]) -> float:
        """Give the median over the rounds of the ratio of two ways in the same round."""
        others = {sample.round_number: figure(sample) for sample in self.of(to)}
        return median(figure(sample) / others[sample.round_number] for sample in self.of(way))


class Run(Moves[Sample]):
    """All moves with one kind of guest."""

    def largest_agent_bytes(self) -> int:
        """Give the most memory that an agent had resident after any move."""
        return max(sample.agent_resident_bytes or 0 for sample in self.samples)
