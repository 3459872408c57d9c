"""Writes the disk part of a benchmark down: a section of the page, and plain values for JSON. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from tests.bench.disk_guest import BEFORE_S, WRITE_MIB_S
from tests.bench.disk_sample import WAYS, DiskRun, DiskSample, Writes
from tests.bench.report import Target, ms, table, targets_table
from tests.bench.sample import COMMAND
from tests.bench.ways import PLAIN, PSK, RAW, RAW_PSK, FerryWay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import date

_HEADING: Final = "## Disks"
_INTRODUCTION: Final = f"""\
A guest with 1 GiB of memory, nearly all of it a pattern that does not compress and hardly changes, goes together with its disk: a
qcow2 image of 1 GiB with 256 MiB in it, 4 MiB in every 16. It writes {WRITE_MIB_S:g} MiB each second to it, 4 KiB at a time at
random, and flushes ten times a second. The disk is copied first, over NBD, with the guest's writes on both sides from the start;
memory follows when the copy is ready; the copy is ended once the guest stands still. QEMU alone does that by the shortest script
that is as safe: it looks whether the copy is complete, and drops the export before the guest runs. Image, NBD server and QEMU
at the destination are there before in both, and all images lie in memory. `python -m tests.bench disks` measures this part alone.
"""
_COLUMNS: Final = f"""\
- **total**: from `blockdev-add` sent until the guest runs at the destination. **ratio** is the median over the rounds of the total
  divided by that of QEMU alone in the same round, with the same encryption; of the tunnel by QEMU alone, plain.
- **copy**: the part until QEMU says that the copy is ready; **turn**: from there until `migrate` sent; **memory**: from there until
  the guest stops; **standstill**: from there until it runs at the destination; **settle**: what of that the end of the copy takes,
  until it is known to be complete. **gap**: the longest silence of the guest's own ticks, start and end of the move included.
- **on the wire**: bytes that went over the connection of the copy to the destination, the guest's own writes and encryption among
  them, divided by what the image takes on the source's storage after the move; by the kernel's count of the TCP connection, of the
  tunnel by its own count of what QEMU gave it. **image**: what the copy takes, divided by the same.
- **command**, **CPU**, **agent**: as above.
- **writes**: how long the guest's own writes took, from the request handed to its device until the guest saw it done, by its own
  clock: in the {BEFORE_S:g} s before the copy began (of Ferry its preparations fall into that), while the disk was copied, and from
  then until the guest stopped. Medians over the rounds of each round's p50, p99 and slowest; p50 and p99 are rounded upwards, to a
  quarter of an octave. The guest stands in line for its CPU and QEMU's main loop like all else here.
"""
_HIGHEST_RATIO: Final = 1.15
_HIGHEST_WIRE_RATIO: Final = 1.10
_MEGA: Final = 1e6


def targets(run: DiskRun) -> tuple[Target, ...]:
    """Hold what was measured against what Ferry is to reach."""
    plain, psk = (run.ratio(way, to, _elapsed_s) for way, to in ((PLAIN, RAW), (PSK, RAW_PSK)))
    wire = run.largest_wire_ratio
    most = f"at most {_HIGHEST_RATIO:.2f}"
    return (
        Target("Ferry plain with a disk, total against QEMU alone", most, f"{plain:.2f}", plain <= _HIGHEST_RATIO),
        Target("Ferry PSK with a disk, total against QEMU alone, same cipher", most, f"{psk:.2f}", psk <= _HIGHEST_RATIO),
        Target(
            "bytes on the wire for each allocated one, largest seen",
            f"at most {_HIGHEST_WIRE_RATIO:.2f}",
            f"{wire:.3f}",
            wire <= _HIGHEST_WIRE_RATIO,
        ),
    )


def tables(run: DiskRun) -> str:
    """Write a run's figures as Markdown tables."""
    times: list[tuple[str, ...]] = [
        ("", "total", "ratio", "copy", "turn", "memory", "standstill", "settle", "gap", "on the wire", "image")
    ]
    writes: list[tuple[str, ...]] = [("writes: p50 / p99 / slowest", "before", "while copied", "while mirrored")]
    costs: list[tuple[str, ...]] = [("", "command", "CPU", "CPU of the command", "agent, resident")]
    for name, way in WAYS.items():
        times.append((name, *_times(run, name)))
        figures = (_before, _copied, _mirrored)
        writes.append((name, *(_writes(run, name, figure) for figure in figures)))
        if isinstance(way, FerryWay):
            costs.append((name, *_costs(run, name)))
    return f"{table(times)}\n{table(writes)}\n{table(costs)}"


def section(measured_on: date, machine: Mapping[str, str], run: DiskRun) -> str:
    """Write the section: what was measured, and what it came to."""
    count = len(run.of(RAW))
    measured = f"Measured {measured_on:%Y-%m-%d} with QEMU {machine['QEMU']}, load average at the start {_load(machine)}"
    parts = [
        f"{_HEADING}\n",
        _INTRODUCTION,
        f"{measured}; medians of {count} rounds.\n" if count > 1 else f"{measured}; once each: an example, not a statistic.\n",
        targets_table(targets(run)),
        _COLUMNS,
        tables(run),
    ]
    return "\n".join(parts)


def with_section(page: str, new: str) -> str:
    """Put the section in the place of the one that is there, or at the end of the page."""
    before, found, rest = page.partition(f"{_HEADING}\n")
    following = re.search(r"^## ", rest, re.MULTILINE) if found else None
    after = f"\n{rest[following.start() :]}" if following else ""
    return f"{before.rstrip()}\n\n{new.rstrip()}\n{after}"


def values(measured_on: date, machine: Mapping[str, str], run: DiskRun) -> dict[str, object]:
    """Give everything as plain values: each move, and the targets."""
    return {
        "measured_on": measured_on.isoformat(),
        "machine": dict(machine),
        "targets": [asdict(target) for target in targets(run)],
        "moves": [asdict(sample) for sample in run.samples],
    }


def _times(run: DiskRun, name: str) -> Iterator[str]:
    yield ms(run.median(name, _elapsed_s))
    yield f"{run.ratio(name, way.against, _elapsed_s):.2f}" if isinstance(way := WAYS[name], FerryWay) else "-"
    yield ms(run.median(name, lambda sample: sample.copy_s))
    yield ms(run.median(name, lambda sample: sample.turn_s), digits=1)
    yield ms(run.median(name, lambda sample: sample.memory_s))
    yield ms(run.median(name, lambda sample: sample.standstill_s))
    yield ms(run.median(name, lambda sample: sample.settle_s), digits=1)
    yield ms(run.median(name, lambda sample: sample.gap_s))
    yield f"{run.median(name, lambda sample: sample.wire_ratio):.3f}"
    yield f"{run.median(name, lambda sample: sample.copy_allocated_bytes / sample.allocated_bytes):.3f}"


def _writes(run: DiskRun, name: str, figure: Callable[[DiskSample], Writes]) -> str:
    spans_s = (
        run.median(name, lambda sample: figure(sample).p50_s),
        run.median(name, lambda sample: figure(sample).p99_s),
        run.median(name, lambda sample: figure(sample).slowest_s),
    )
    return " / ".join(f"{span_s * 1000:.1f}" for span_s in spans_s) + " ms"


def _costs(run: DiskRun, name: str) -> Iterator[str]:
    yield f"{run.median(name, lambda sample: sample.command_s or 0.0):.2f} s"
    yield f"{run.median(name, lambda sample: sample.servers_cpu_s):.2f} s"
    yield f"{run.median(name, lambda sample: sample.cpu_s[COMMAND]):.2f} s"
    yield f"{run.median(name, lambda sample: sample.agent_resident_bytes or 0) / _MEGA:.0f} MB"


def _load(machine: Mapping[str, str]) -> str:
    return machine["load average at the start"]


def _elapsed_s(sample: DiskSample) -> float:
    return sample.elapsed_s


def _before(sample: DiskSample) -> Writes:
    return sample.writes_before


def _copied(sample: DiskSample) -> Writes:
    return sample.writes


def _mirrored(sample: DiskSample) -> Writes:
    return sample.writes_mirrored
