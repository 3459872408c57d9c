"""A worker: a fleet in a network of its own, on which one round after the other is run; a result a line on stdout."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from deploy.lab.fleet import HOSTS, Fleet
from deploy.lab.network import TwoHosts
from tests.chaos.case import BATCH_ROUNDS, Case, draw
from tests.chaos.faults import Place, small_state
from tests.chaos.round import Result, run_round
from tests.chaos.verdict import excuse
from tests.e2e.binaries import PATHS
from tests.e2e.stepped_clock import SteppedClock

ROUND_TIMEOUT_S = 240.0


@contextmanager
def _place(network: TwoHosts, versions: tuple[str, str]) -> Iterator[Place]:
    """Start a fleet whose hosts have these QEMUs."""
    emulators = ", ".join(f'"{path}"' for path in PATHS.values() if path.exists())
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(small_state(directory))
        clock = SteppedClock(directory)
        fleet = Fleet(
            directory,
            qemu={host: str(PATHS[version]) for host, version in zip(HOSTS, versions, strict=True)},
            settings=dict.fromkeys(HOSTS, f"emulators = [{emulators}]"),
            places=network,
            environment=clock.environment,
        )
        with fleet:
            yield Place(fleet, network, clock)


def run(seed: int, numbers: Iterator[int], kept: Path) -> None:
    """Run rounds by their numbers; the fleet is replaced after a round with a finding, and where the QEMUs change."""
    installed = tuple(version for version, path in PATHS.items() if path.exists())
    with TwoHosts() as network:
        number = next(numbers, None)
        while number is not None:
            versions = draw(seed, number, installed).versions
            with _place(network, versions) as place:
                for _ in range(BATCH_ROUNDS):
                    case = draw(seed, number, installed)
                    if case.versions != versions:
                        break
                    is_sound = _run_one(place, case, kept)
                    number = next(numbers, None)
                    if number is None or not is_sound:
                        break


def _run_one(place: Place, case: Case, kept: Path) -> bool:
    directory = place.fleet.directory / f"r{case.number}"
    directory.mkdir()
    error = ""
    result: Result | None = None
    try:
        result = asyncio.run(_bounded(place, case, directory))
    except BaseException as caught:
        if isinstance(caught, KeyboardInterrupt | SystemExit):
            raise
        error = "".join(traceback.format_exception(caught))[-3000:]
    wrong = [f"the round broke: {error.strip().splitlines()[-1][:300]}"] if result is None else result.wrong
    if wrong:
        _keep(place, directory, kept / f"{case.seed}-{case.number}", error)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    line = {"number": case.number, "case": asdict(case), "title": str(case), "wrong": wrong}
    if result is not None:
        line |= {
            "ending": asdict(result.seen.ending),
            "hit": [result.seen.source_phase, result.seen.destination_phase],
            "gap_s": result.seen.longest_gap_s,
            "speakers": result.seen.speakers,
            "excuse": excuse(case, result.seen),
            "was_restarted": result.seen.was_restarted,
            "followed": result.seen.followed,
            "second": result.seen.second.state if result.seen.second else None,
            "phases": result.phases,
            "done_at_s": result.done_at_s,
            "took_s": round(result.took_s, 2),
        }
    print(json.dumps(line), flush=True)
    return not wrong


async def _bounded(place: Place, case: Case, directory: Path) -> Result:
    async with asyncio.timeout(ROUND_TIMEOUT_S):
        return await run_round(place, case, directory)


def _keep(place: Place, directory: Path, kept: Path, error: str) -> None:
    """Keep what tells about a round: logs, records, the console."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / "error.txt").write_text(error)
    for path in place.fleet.directory.glob("*.log"):
        shutil.copy(path, kept)
    for host in HOSTS:
        for path in (place.fleet.directory / host).rglob("*"):
            if path.suffix in {".json", ".log"} and path.is_file():
                target = kept / path.relative_to(place.fleet.directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    for path in directory.glob("serial.log"):
        shutil.copy(path, kept)


if __name__ == "__main__":
    run(int(sys.argv[1]), map(int, (line for line in sys.stdin if line.strip())), Path(sys.argv[2]))
