"""`make bench`: Ferry against QEMU alone; see docs/benchmarks.md for what is measured and what came out.

python -m tests.bench disks   measures moves with a disk alone, and leaves the rest of the page as it is
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from deploy.lab.fleet import REPOSITORY, Fleet
from tests.bench import disk_report, disks, foresight, raw, report, stubborn
from tests.bench.disk_sample import DiskRun
from tests.bench.foresight import Foresight
from tests.bench.guest import Make, linux_guest, tick_guest
from tests.bench.machine import describe
from tests.bench.measure import Bench
from tests.bench.report import Target
from tests.bench.sample import Run
from tests.bench.stubborn import Endings
from tests.bench.ways import WAYS
from tests.guests import linux

_ROUNDS = 9
_DISK_ROUNDS = 7
_MEBIBYTES = 256
_STUBBORN_ROUNDS = 3
_PLAN_ROUNDS = 2
_ALL, _DISKS = "all", "disks"


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is measured where, and where that is written."""

    today: date
    machine: Mapping[str, str]
    page: Path
    json: Path


def main() -> None:
    """Measure, print the tables, and write the page."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Ferry against QEMU alone.")
    parser.add_argument("part", nargs="?", choices=(_ALL, _DISKS), default=_ALL, help="what is measured (%(default)s)")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help="moves of each way (%(default)s)")
    parser.add_argument("--disk-rounds", type=int, default=_DISK_ROUNDS, metavar="N", help="the same with a disk (%(default)s)")
    parser.add_argument("--mebibytes", type=int, default=_MEBIBYTES, metavar="N", help="pattern in the guest (%(default)s)")
    parser.add_argument("--no-linux", action="store_true", help="leave the Linux guest out")
    parser.add_argument("--json", type=Path, default=REPOSITORY / ".cache" / "benchmarks.json", metavar="FILE", help="every move")
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / "docs" / "benchmarks.md", metavar="FILE", help="(docs/benchmarks.md)"
    )
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.disk_rounds) < 1:
        parser.error("--rounds, --disk-rounds: at least 1")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the fleet is ended then too
    setting = _Setting(datetime.now(UTC).date(), describe(raw.DEFAULT_BINARY), arguments.page, arguments.json)
    setting.json.parent.mkdir(parents=True, exist_ok=True)
    if arguments.part == _DISKS:
        _write_disks(setting, asyncio.run(_measure_disks(arguments.disk_rounds)))
        return
    plan: dict[str, tuple[Make, int]] = {
        f"A guest with {arguments.mebibytes} MiB that hardly change": (tick_guest(arguments.mebibytes), arguments.rounds)
    }
    if not arguments.no_linux and linux.KERNEL.exists():
        plan["A Linux guest of 512 MiB that changes 4 MiB each second"] = (linux_guest, 1)
    runs, endings, plans, disk_run = asyncio.run(_measure(plan, arguments.disk_rounds))
    _write(setting, runs, endings, plans)
    _write_disks(setting, disk_run)


def _write(setting: _Setting, runs: Mapping[str, Run], endings: Endings, plans: tuple[Foresight, ...]) -> None:
    for title, run in runs.items():
        print(f"\n{title}\n\n{report.tables(run)}")
    print(f"\nA guest that never converges\n\n{report.stubborn_table(endings)}")
    print(f"\nPlans\n\n{report.plans_table(plans)}")
    _print_targets(report.targets(next(iter(runs.values())), endings, plans))
    setting.page.write_text(report.document(setting.today, setting.machine, runs, endings, plans))
    _write_values(setting.json, report.values(setting.today, setting.machine, runs, endings, plans))


def _write_disks(setting: _Setting, run: DiskRun) -> None:
    """Put the part of the disks into the page and the values that are there."""
    print(f"\nMoves with a disk\n\n{disk_report.tables(run)}")
    _print_targets(disk_report.targets(run))
    page = setting.page.read_text() if setting.page.exists() else ""
    setting.page.write_text(disk_report.with_section(page, disk_report.section(setting.today, setting.machine, run)))
    values = json.loads(setting.json.read_text()) if setting.json.exists() else {}
    _write_values(setting.json, {**values, "disks": disk_report.values(setting.today, setting.machine, run)})


def _write_values(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def _print_targets(targets: Sequence[Target]) -> None:
    for target in targets:
        print(f"{'reached' if target.is_met else 'MISSED ':8} {target.name}: {target.measured} ({target.wanted})")


async def _measure(
    plan: Mapping[str, tuple[Make, int]], disk_rounds: int
) -> tuple[dict[str, Run], Endings, tuple[Foresight, ...], DiskRun]:
    async with _fleet() as (bench, fleet):
        runs = {title: await _rounds(bench, make, count) for title, (make, count) in plan.items()}
        endings = await stubborn.measure(bench, fleet.directory, _STUBBORN_ROUNDS)
        plans = await foresight.measure(bench, fleet, _PLAN_ROUNDS)
        return runs, endings, plans, await disks.measure(bench, fleet, disk_rounds)


async def _measure_disks(rounds: int) -> DiskRun:
    async with _fleet() as (bench, fleet):
        return await disks.measure(bench, fleet, rounds)


@asynccontextmanager
async def _fleet() -> AsyncIterator[tuple[Bench, Fleet]]:
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        fleet = Fleet(Path(name))
        await asyncio.to_thread(fleet.__enter__)
        try:
            async with Bench(fleet) as bench:
                yield bench, fleet
        finally:
            await asyncio.to_thread(fleet.stop)


async def _rounds(bench: Bench, make: Make, count: int) -> Run:
    """Let the ways take turns; each round begins with another one."""
    samples, names = [], tuple(WAYS)
    for number in range(count):
        first = number % len(WAYS)
        for way in (*names[first:], *names[:first]):
            sample = await bench.move(number, way, make)
            samples.append(sample)
            print(f"round {number + 1} of {count}, {way}: {sample.elapsed_s * 1000:.0f} ms", file=sys.stderr)
    return Run(samples)


if __name__ == "__main__":
    main()
