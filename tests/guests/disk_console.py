"""What the disk guest said of its disks, beside its ticks; see `console.py`, and `disk_guest/main.c` for the lines."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.guests.console import Console, Story

_LINE = re.compile(
    rb"disk (?P<disk>\d+) issued (?P<issued>\d+) wrote (?P<wrote>\d+) flushed (?P<flushed>\d+)"
    rb" sweep (?P<sweep>\d+) slowest (?P<slowest_us>\d+) errors (?P<error_count>\d+)"
)
_LATENCIES = re.compile(rb"disk (?P<disk>\d+) latencies(?P<buckets>(?: \d+:\d+)*)")
_SIZE = re.compile(rb"disk (?P<disk>\d+) sectors (?P<sectors>\d+)")
_ERROR = re.compile(rb"disk \d+ (?:read|write|flush) error \d+")
_QUIET = b"ferry disk: quiet"
_WAIT_S = 20.0
_BUCKETS_AN_OCTAVE = 4


@dataclass(frozen=True, slots=True)
class DiskLine:
    """One line of one disk.

    Attributes:
        disk: its index, in the order of PCI addresses.
        issued: number of the last write that was begun.
        wrote: all writes up to this number are acknowledged.
        flushed: all up to this number were acknowledged before a flush that is acknowledged too.
        sweep: how often all slots were read and checked.
        slowest_us: of the writes since the line before, the slowest, or the age of one that is still on its way.
        error_count: requests that failed since boot.
        arrived_at_s: when the line was read here.
    """

    disk: int
    issued: int
    wrote: int
    flushed: int
    sweep: int
    slowest_us: int
    error_count: int
    arrived_at_s: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """How many writes were how slow; bucket 4 n + q begins at 2^n (1 + q/4) us."""

    buckets: Counter[int]

    def since(self, earlier: Latencies) -> Latencies:
        """Return those that came after `earlier`."""
        return Latencies(self.buckets - earlier.buckets)

    @property
    def write_count(self) -> int:
        """How many writes these are."""
        return self.buckets.total()

    def percentile_us(self, percent: float) -> float:
        """Return what `percent` of the writes were not slower than, to a quarter of an octave upwards; 0 of none."""
        rank = math.ceil(self.write_count * percent / 100)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                octave, quarter = divmod(bucket + 1, _BUCKETS_AN_OCTAVE)
                return 2.0**octave * (1 + quarter / _BUCKETS_AN_OCTAVE)
        return 0.0


class DiskStory(Story):
    """All that a disk guest has said so far.

    Args:
        may_fail: errors that the guest gets from its disks are no complaint.
    """

    def __init__(self, *, may_fail: bool = False) -> None:
        super().__init__()
        self.lines: dict[int, list[DiskLine]] = {}
        self.latencies: dict[int, list[tuple[float, Latencies]]] = {}
        self.sector_counts: dict[int, int] = {}
        self.quiet_count = 0
        self._may_fail = may_fail

    def _judge(self, line: bytes, at_s: float) -> None:
        if found := _LINE.fullmatch(line):
            numbers = {name: int(text) for name, text in found.groupdict().items()}
            self._judge_disk(DiskLine(**numbers, arrived_at_s=at_s))
        elif found := _LATENCIES.fullmatch(line):
            pairs = (pair.split(b":") for pair in found["buckets"].split())
            latencies = Latencies(Counter({int(bucket): int(count) for bucket, count in pairs}))
            self.latencies.setdefault(int(found["disk"]), []).append((at_s, latencies))
        elif line == _QUIET:
            self.quiet_count += 1
        elif not self.ticks and (found := _SIZE.fullmatch(line)):
            self.sector_counts[int(found["disk"])] = int(found["sectors"])
        elif not (self._may_fail and _ERROR.fullmatch(line)):
            super()._judge(line, at_s)

    def _judge_disk(self, line: DiskLine) -> None:
        lines = self.lines.setdefault(line.disk, [])
        if not line.flushed <= line.wrote <= line.issued:
            self._complain(f"{line} is out of order")
        if lines and not _follows(line, lines[-1]):
            self._complain(f"{line} after {lines[-1]}")
        if line.error_count > (lines[-1].error_count if lines else 0) and not self._may_fail:
            self._complain(f"{line.error_count} errors of disk {line.disk}")
        lines.append(line)


class DiskConsole(Console):
    """Follows the serial log of a disk guest."""

    def __init__(self, path: Path, *, may_fail: bool = False) -> None:
        self.disks = DiskStory(may_fail=may_fail)
        super().__init__(path, story=self.disks)

    def last(self, disk: int = 0) -> DiskLine:
        """Return the last line of a disk."""
        return self.disks.lines[disk][-1]

    def lines(self, disk: int = 0) -> tuple[DiskLine, ...]:
        """Return all lines of a disk."""
        return tuple(self.disks.lines.get(disk, ()))

    def max_write_gap_s(self, disk: int = 0, since_s: float = 0.0, until_s: float | None = None) -> float:
        """Return the longest time in which no write of this disk was acknowledged, until now unless said otherwise."""
        end_s = time.monotonic() if until_s is None else until_s
        lines = self.lines(disk)
        rises = [after.arrived_at_s for before, after in pairwise(lines) if after.wrote > before.wrote]
        rises = [at_s for at_s in rises if at_s <= end_s]
        first = max([at_s for at_s in rises if at_s <= since_s], default=since_s or (rises[0] if rises else 0.0))
        edges = [first, *(at_s for at_s in rises if at_s > first), end_s]
        return max(after - before for before, after in pairwise(edges))

    def slowest_write_s(self, disk: int = 0, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """Return the slowest write that the guest saw between; time in which it was stopped does not count."""
        return max((line.slowest_us for line in self.lines(disk) if since_s <= line.arrived_at_s <= until_s), default=0) / 1e6

    def latencies(self, disk: int = 0, since_s: float = 0.0, until_s: float = math.inf) -> Latencies:
        """Return the latencies between the guest's last word on them before `since_s` and its last before `until_s`."""
        said = [(at_s, latencies) for at_s, latencies in self.disks.latencies.get(disk, ()) if at_s <= until_s]
        nothing = Latencies(Counter())
        before = [latencies for at_s, latencies in said if at_s <= since_s]
        return (said[-1][1] if said else nothing).since(before[-1] if before else nothing)

    async def wait_written(self, count: int = 1, *, disk: int = 0, timeout_s: float = _WAIT_S) -> DiskLine:
        """Wait until `count` writes more than are begun now are acknowledged.

        Raises:
            TimeoutError: they are not.
        """
        return await self._wait_disk(disk, lambda line: line.wrote, self._now(disk, "issued") + count, "written", timeout_s)

    async def wait_flushed(self, *, disk: int = 0, timeout_s: float = _WAIT_S) -> DiskLine:
        """Wait until all writes that are begun now are flushed.

        Raises:
            TimeoutError: they are not.
        """
        return await self._wait_disk(disk, lambda line: line.flushed, self._now(disk, "issued"), "flushed", timeout_s)

    async def wait_disk_sweeps(self, count: int = 2, *, disk: int = 0, timeout_s: float = _WAIT_S) -> DiskLine:
        """Wait until the guest has read and checked all slots `count` times; with 2, once from now on.

        Raises:
            TimeoutError: it has not.
        """
        return await self._wait_disk(disk, lambda line: line.sweep, self._now(disk, "sweep") + count, "sweeps", timeout_s)

    async def wait_quiet(self, *, count: int = 1, timeout_s: float = _WAIT_S) -> None:
        """Wait until the guest has been quiet `count` times: nothing is on its way, and all is flushed.

        Raises:
            TimeoutError: it has not.
        """
        await self._wait(lambda: self.disks.quiet_count >= count, "quiet", timeout_s)

    def _now(self, disk: int, name: str) -> int:
        return int(getattr(self.last(disk), name)) if self.disks.lines.get(disk) else 0

    async def _wait_disk(self, disk: int, number: Callable[[DiskLine], int], wanted: int, what: str, timeout_s: float) -> DiskLine:
        await self._wait(
            lambda: bool(self.disks.lines.get(disk)) and number(self.last(disk)) >= wanted,
            f"{wanted} {what} of disk {disk}",
            timeout_s,
        )
        return self.last(disk)


def _follows(line: DiskLine, before: DiskLine) -> bool:
    return (
        line.issued >= before.issued
        and line.wrote >= before.wrote
        and line.flushed >= before.flushed
        and line.sweep >= before.sweep
        and line.error_count >= before.error_count
    )
