"""`make bench`: Ferry against QEMU alone; see docs/benchmarks.md for what is measured and what came out."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from deploy.lab.fleet import REPOSITORY, Fleet
from tests.bench import foresight, raw, report, stubborn
from tests.bench.foresight import Foresight
from tests.bench.guest import Make, linux_guest, tick_guest
from tests.bench.machine import describe
from tests.bench.measure import Bench
from tests.bench.sample import Run
from tests.bench.stubborn import Endings
from tests.bench.ways import WAYS
from tests.guests import linux

_ROUNDS = 9
_MEBIBYTES = 256
_STUBBORN_ROUNDS = 3
_PLAN_ROUNDS = 2


def main() -> None:
    """Measure, print the tables, and write the page."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure Ferry against QEMU alone.")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, metavar="N", help="moves of each way (%(default)s)")
    parser.add_argument("--mebibytes", type=int, default=_MEBIBYTES, metavar="N", help="pattern in the guest (%(default)s)")
    parser.add_argument("--no-linux", action="store_true", help="leave the Linux guest out")
    parser.add_argument("--json", type=Path, default=REPOSITORY / ".cache" / "benchmarks.json", metavar="FILE", help="every move")
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / "docs" / "benchmarks.md", metavar="FILE", help="(docs/benchmarks.md)"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the fleet is ended then too
    plan: dict[str, tuple[Make, int]] = {
        f"A guest with {arguments.mebibytes} MiB that hardly change": (tick_guest(arguments.mebibytes), arguments.rounds)
    }
    if not arguments.no_linux and linux.KERNEL.exists():
        plan["A Linux guest of 512 MiB that changes 4 MiB each second"] = (linux_guest, 1)
    machine, today = describe(raw.DEFAULT_BINARY), datetime.now(UTC).date()
    runs, endings, plans = asyncio.run(_measure(plan))

    for title, run in runs.items():
        print(f"\n{title}\n\n{report.tables(run)}")
    print(f"\nA guest that never converges\n\n{report.stubborn_table(endings)}")
    print(f"\nPlans\n\n{report.plans_table(plans)}")
    for target in report.targets(next(iter(runs.values())), endings, plans):
        print(f"{'reached' if target.is_met else 'MISSED ':8} {target.name}: {target.measured} ({target.wanted})")
    arguments.page.write_text(report.document(today, machine, runs, endings, plans))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report.values(today, machine, runs, endings, plans), indent=1) + "\n")


async def _measure(plan: Mapping[str, tuple[Make, int]]) -> tuple[dict[str, Run], Endings, tuple[Foresight, ...]]:
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        fleet = Fleet(Path(name))
        await asyncio.to_thread(fleet.__enter__)
        try:
            async with Bench(fleet) as bench:
                runs = {title: await _rounds(bench, make, count) for title, (make, count) in plan.items()}
                endings = await stubborn.measure(bench, fleet.directory, _STUBBORN_ROUNDS)
                return runs, endings, await foresight.measure(bench, fleet, _PLAN_ROUNDS)
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
