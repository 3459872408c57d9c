"""Writes a benchmark down: as Markdown for people, as plain values for JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from statistics import median

from tests.bench.foresight import Foresight, inside_share, median_error
from tests.bench.sample import COMMAND, Run, Sample
from tests.bench.stubborn import BANDWIDTH_MIB_S, DIRTY_MIB_S, MAX_DOWNTIME_S, MAX_DURATION_S, MEBIBYTES, Ending, Endings
from tests.bench.ways import PLAIN, PSK, RAW, RAW_PSK, RAW_PSK_DEFAULT, TUNNEL, WAYS, FerryWay

_INTRODUCTION = """\
# Benchmarks

What Ferry costs on top of QEMU. `make bench` moves a guest that has just booted from one QEMU to another on the same machine,
over the loopback: by QEMU alone, told what to do by the shortest script that hands a guest over as safely as Ferry does (return
path, pre-switchover, the destination starts after `completed`; no journal, no watch, no undo), and by Ferry with everything on:
two agents, two tunnels and a coordinator with mTLS between them, traces kept, and the `ferry` command watching. The ways take
turns in every round, so that what the machine does besides strikes all of them. Neither has a bandwidth limit. Between two moves
lie some seconds, in which a machine that is itself a guest gives freed memory back to its host: every destination then has to get
its memory anew, which on such a machine takes longer than to copy it.

Both hosts, the guest and the benchmark share the cores of one machine, so more work anywhere makes everything slower; two real
hosts have a network between them and CPU to spare. Compare the ratios, not the absolute figures.
"""
_COLUMNS = """\
- **total**: from `migrate` sent until the guest runs at the destination; of post-copy until all of its memory is there. **ratio**
  is the median over the rounds of the total divided by that of QEMU alone in the same round, with the same encryption and as many
  channels; of the tunnel by QEMU alone, plain, over one channel.
- **rate**: bytes sent, as QEMU counts them, divided by the total, and the ratio to QEMU unencrypted.
- **QEMU downtime** is QEMU's own figure. It holds what QEMU leaves to send with the guest stopped, up to the 300 ms allowed.
- **gap**: the longest silence of the guest's own ticks, start and end of the move included.
- **own part**: what of the downtime is not QEMU's: STOP to `migrate-continue` sent, and `completed` to Resume answered.
- **command**: the whole of `ferry migrate`, start of Python, Begin, Prepare, Finish and Confirm included.
- **CPU**: of agents, tunnels and coordinator together, during the command and a moment after; then of the command itself.
"""
_STUBBORN = f"""\
### A guest that changes {DIRTY_MIB_S:.0f} MiB each second, sent at {BANDWIDTH_MIB_S} MiB/s

{MEBIBYTES} MiB of memory, and `--max-duration {MAX_DURATION_S:.0f}s --max-downtime {MAX_DOWNTIME_S * 1000:.0f}ms`: what never
ends by itself. **transfer** is the time from its start to its end, **standstill** from the guest's stop to its start at the
destination. The last one's gap holds the wait for pages that are still at the source, and the first one's CPU is what Ferry's
servers need while a transfer runs. Medians.
"""
_LEAST_INSIDE = 0.9
_MOST_ERROR = 0.25
_PLANS = """\
### What `ferry plan` said, and what the move took

Each move is planned, and made a few seconds later with the same options.
"""
_MILLI = 1e3
_MEGA = 1e6
_HIGHEST_PLAIN_RATIO = 1.10
_LONGEST_OWN_S = 0.005
_LOWEST_TUNNEL_RATIO = 0.5
_MOST_TUNNEL_CPU_S = 3.0
MOST_AGENT_BYTES = 100e6
_HIGHEST_PSK_RATIO = 1.10
_MOST_CPU_SHARE = 0.03


@dataclass(frozen=True, slots=True)
class Target:
    """What was promised, and what it came to."""

    name: str
    wanted: str
    measured: str
    is_met: bool


def targets(run: Run, endings: Endings, plans: Sequence[Foresight]) -> tuple[Target, ...]:
    """Hold what was measured against what Ferry is to reach."""
    ratio = run.ratio(PLAIN, RAW, _elapsed_s)
    own_s = run.median(PLAIN, _own_s)
    psk = run.ratio(PSK, RAW_PSK, _elapsed_s)
    default = run.ratio(PSK, RAW_PSK_DEFAULT, _elapsed_s)
    rate = run.ratio(TUNNEL, RAW, _bytes_s)
    cpu_s = run.median(TUNNEL, _tunnels_cpu_s)
    resident = run.largest_agent_bytes()
    return (
        Target(
            "Ferry plain, total against QEMU alone",
            f"at most {_HIGHEST_PLAIN_RATIO:.2f}",
            f"{ratio:.2f}",
            ratio <= _HIGHEST_PLAIN_RATIO,
        ),
        Target(
            "Ferry plain, own part of the downtime",
            f"at most {_LONGEST_OWN_S * _MILLI:.0f} ms",
            f"{own_s * _MILLI:.1f} ms",
            own_s <= _LONGEST_OWN_S,
        ),
        Target(
            "Ferry PSK, total against QEMU alone, same cipher",
            f"at most {_HIGHEST_PSK_RATIO:.2f}",
            f"{psk:.2f}",
            psk <= _HIGHEST_PSK_RATIO,
        ),
        Target("Ferry PSK, total against QEMU alone, its default cipher", "below 1.00", f"{default:.2f}", default < 1),
        Target("tunnel, rate against QEMU alone", f"at least {_LOWEST_TUNNEL_RATIO}", f"{rate:.2f}", rate >= _LOWEST_TUNNEL_RATIO),
        Target(
            "CPU of both tunnels for each GB",
            f"at most {_MOST_TUNNEL_CPU_S:.1f} s",
            f"{cpu_s:.2f} s",
            cpu_s <= _MOST_TUNNEL_CPU_S,
        ),
        Target(
            "agent, resident memory, largest seen",
            f"at most {MOST_AGENT_BYTES / _MEGA:.0f} MB",
            f"{resident / _MEGA:.0f} MB",
            resident <= MOST_AGENT_BYTES,
        ),
        Target(
            "CPU of all servers while a direct transfer runs",
            f"at most {_MOST_CPU_SHARE:.0%} of a core",
            f"{endings.cpu_share:.1%}",
            endings.cpu_share <= _MOST_CPU_SHARE,
        ),
        Target(
            "a guest that never converges, under must-finish with post-copy",
            "inside its duration and its downtime",
            "kept" if endings.has_kept_promise else "broken",
            endings.has_kept_promise,
        ),
        Target(
            "ferry plan, moves whose duration lies inside what was predicted",
            f"at least {_LEAST_INSIDE:.0%}",
            f"{inside_share(plans):.0%}",
            inside_share(plans) >= _LEAST_INSIDE,
        ),
        Target(
            "ferry plan, median error of the likely duration",
            f"below {_MOST_ERROR:.0%}",
            f"{median_error(plans):.0%}",
            median_error(plans) < _MOST_ERROR,
        ),
    )


def tables(run: Run) -> str:
    """Write a run's figures as Markdown tables."""
    times: list[tuple[str, ...]] = [
        ("", "total", "ratio", "rate", "ratio", "QEMU downtime", "gap", "own part", "stop", "device", "resume")
    ]
    costs: list[tuple[str, ...]] = [("", "command", "CPU", "CPU of the command", "tunnels, CPU per GB", "agent, resident")]
    for name, way in WAYS.items():
        times.append((name, *_times(run, name)))
        if isinstance(way, FerryWay):
            costs.append((name, *_costs(run, name, way)))
    return f"{table(times)}\n{table(costs)}"


def targets_table(all_of_them: Sequence[Target]) -> str:
    """Write what was promised and what it came to."""
    rows = [(one.name, one.wanted, one.measured, "reached" if one.is_met else "**missed**") for one in all_of_them]
    return table([("", "wanted", "measured", ""), *rows])


def stubborn_table(endings: Endings) -> str:
    """Write how the moves of the stubborn guest ended; medians."""
    rows: list[tuple[str, ...]] = [("", "moved", "transfer", "standstill", "gap", "CPU of the servers")]
    for policy in endings.policies:
        moves = endings.of(policy)
        moved = sum(move.has_moved for move in moves)
        rows.append((policy, f"{moved} of {len(moves)}", *_ending(moves)))
    return table(rows)


def plans_table(plans: Sequence[Foresight]) -> str:
    """Write what was predicted of each move and what it took."""
    rows: list[tuple[str, ...]] = [("", "predicted", "from", "to", "actual", "", "plan took")]
    for one in plans:
        verdict = "inside" if one.is_inside else "**outside**"
        seconds = (f"{value:.2f} s" for value in (one.likely_s, one.low_s, one.high_s, one.actual_s))
        rows.append((one.workload, *seconds, verdict, f"{one.planning_s:.1f} s"))
    return table(rows)


def _ending(moves: Sequence[Ending]) -> Iterator[str]:
    yield f"{median(move.transfer_s for move in moves):.1f} s"
    yield ms(median(move.standstill_s for move in moves))
    yield ms(median(move.gap_s for move in moves))
    yield f"{median(move.servers_cpu_share for move in moves):.1%} of a core"


def document(
    measured_on: date, machine: Mapping[str, str], runs: Mapping[str, Run], endings: Endings, plans: Sequence[Foresight]
) -> str:
    """Write the page: what was measured, on what, and what it came to; the first run is held against the targets."""
    first = next(iter(runs.values()))
    parts = [
        _INTRODUCTION,
        "## Machine\n",
        table([("", ""), *machine.items(), ("measured", f"{measured_on:%Y-%m-%d}")]),
        "## Targets\n",
        targets_table(targets(first, endings, plans)),
        "## Figures\n",
        _COLUMNS,
    ]
    for title, run in runs.items():
        count = len(run.of(RAW))
        parts += [
            f"### {title}\n",
            f"Medians of {count} rounds.\n" if count > 1 else "Once each: an example, not a statistic.\n",
            tables(run),
        ]
    parts += [_STUBBORN, stubborn_table(endings), _PLANS, plans_table(plans)]
    return "\n".join(parts)


def values(
    measured_on: date, machine: Mapping[str, str], runs: Mapping[str, Run], endings: Endings, plans: Sequence[Foresight]
) -> dict[str, object]:
    """Give everything as plain values: each move, and the targets."""
    return {
        "measured_on": measured_on.isoformat(),
        "machine": dict(machine),
        "targets": [asdict(target) for target in targets(next(iter(runs.values())), endings, plans)],
        "runs": {title: [asdict(sample) for sample in run.samples] for title, run in runs.items()},
        "plans": [asdict(one) for one in plans],
        "stubborn": [asdict(ending) for ending in endings.all],
    }


def _times(run: Run, name: str) -> Iterator[str]:
    yield ms(run.median(name, _elapsed_s))
    yield f"{run.ratio(name, way.against, _elapsed_s):.2f}" if isinstance(way := WAYS[name], FerryWay) else "-"
    yield f"{run.median(name, _bytes_s) / _MEGA:.0f} MB/s"
    yield f"{run.ratio(name, RAW, _bytes_s):.2f}"
    yield ms(run.median(name, lambda sample: sample.qemu_downtime_s))
    yield ms(run.median(name, lambda sample: sample.gap_s))
    yield ms(run.median(name, _own_s), digits=1)
    for leg in ("stop", "device", "resume"):
        yield ms(run.median(name, _leg(leg)), digits=1)


def _costs(run: Run, name: str, way: FerryWay) -> Iterator[str]:
    yield f"{run.median(name, lambda sample: sample.command_s or 0.0):.2f} s"
    yield f"{run.median(name, lambda sample: sample.servers_cpu_s):.2f} s"
    yield f"{run.median(name, lambda sample: sample.cpu_s[COMMAND]):.2f} s"
    yield f"{run.median(name, _tunnels_cpu_s):.2f} s" if "--tunnel" in way.options else "-"
    yield f"{run.median(name, lambda sample: sample.agent_resident_bytes or 0) / _MEGA:.0f} MB"


def _elapsed_s(sample: Sample) -> float:
    return sample.elapsed_s


def _bytes_s(sample: Sample) -> float:
    return sample.bytes_s


def _own_s(sample: Sample) -> float:
    return sample.own_downtime_s


def _tunnels_cpu_s(sample: Sample) -> float:
    return sample.tunnels_cpu_s_per_gb


def _leg(name: str) -> Callable[[Sample], float]:
    return lambda sample: sample.legs_s[name]


def ms(value_s: float, *, digits: int = 0) -> str:
    """Write seconds as milliseconds."""
    return f"{value_s * _MILLI:.{digits}f} ms"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Write rows, the first of them the heading, as a Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
