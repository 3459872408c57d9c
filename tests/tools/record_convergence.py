"""Records what QEMU tells of real transfers that do not end, for the replay tests of the convergence engine.

    .venv/bin/python -m tests.tools.record_convergence [SCENARIO ...]

Each scenario is a tick guest moved from QEMU to QEMU through a relay of a known rate, with a downtime limit of 1 ms, so
that QEMU switches over as late as it can. What is recorded is one line of numbers each 50 ms, as query-migrate gives them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import raw
from tests.bench.qmp import Qmp
from tests.guests import tick

DIRECTORY = Path(__file__).parents[1] / "transcripts" / "convergence"
PERIOD_S = 0.05
MIB = 1 << 20
CHUNK_BYTES = 64 * 1024
DIP_FROM_S, DIP_TO_S, LATER_S = 6.0, 11.0, 15.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One transfer.

    Attributes:
        dirty_mib_s: what the guest rewrites each second.
        rate_mib_s: what the link carries, by seconds since the start.
        works: whether the guest runs, by seconds since the start.
    """

    megabytes: int
    dirty_mib_s: float
    lasts_s: float
    rate_mib_s: Callable[[float], float]
    works: Callable[[float], bool] = lambda _: True


SCENARIOS = {
    "idle": Scenario(64, 0.0, 8.0, lambda _: 60.0),
    "slower-than-the-link": Scenario(64, 20.0, 12.0, lambda _: 60.0),
    "faster-than-the-link": Scenario(64, 80.0, 16.0, lambda _: 40.0),
    "bursts": Scenario(64, 80.0, 20.0, lambda _: 60.0, works=lambda at_s: at_s % 3.0 < 1.5),
    "dips": Scenario(64, 40.0, 20.0, lambda at_s: 6.0 if DIP_FROM_S < at_s < DIP_TO_S else 30.0 if at_s < LATER_S else 100.0),
}


class Relay:
    """Carries bytes at a rate that may change."""

    def __init__(self, onward: Path) -> None:
        self.rate_bytes_s = 1.0
        self.onward = onward

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways."""
        far_reader, far_writer = await asyncio.open_unix_connection(str(self.onward))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._carry(reader, far_writer, is_bounded=True))
            group.create_task(self._carry(far_reader, writer, is_bounded=False))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_bounded: bool) -> None:
        free_at_s = time.monotonic()
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
                if is_bounded:
                    free_at_s = max(free_at_s, time.monotonic() - PERIOD_S) + len(chunk) / self.rate_bytes_s
                    await asyncio.sleep(max(free_at_s - time.monotonic(), 0.0))
        writer.close()


@asynccontextmanager
async def relay(place: Path) -> AsyncIterator[Relay]:
    """Listen on `place`/out.sock for what goes to `place`/in.sock."""
    one = Relay(place / "in.sock")
    async with await asyncio.start_unix_server(one.serve, str(place / "out.sock")):
        yield one


async def record(scenario: Scenario) -> list[dict[str, float]]:
    """Move a guest and return the lines."""
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        place = Path(name)
        image = tick.build(scenario.megabytes, scenario.dirty_mib_s or 0.01, verify_mib_s=1.0, directory=place)
        guest = raw.tick_guest(image, tick.memory_kib(scenario.megabytes), place / "serial.log")
        async with raw.start(guest, place / "a") as source, raw.start(guest, place / "b", incoming=True) as destination:
            await asyncio.sleep(1.0)
            async with relay(place) as link:
                await set_up(source.qmp, destination.qmp, place)
                return await follow(source.qmp, scenario, link)


async def set_up(source: Qmp, destination: Qmp, place: Path) -> None:
    """Let the destination listen, and set both sides alike."""
    for side in (source, destination):
        states = [{"capability": word, "state": True} for word in ("events", "return-path", "pause-before-switchover")]
        await side.execute("migrate-set-capabilities", {"capabilities": states})
        await side.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40, "downtime-limit": 1})
    await destination.execute("migrate-incoming", {"uri": f"unix:{place / 'in.sock'}"})


async def follow(source: Qmp, scenario: Scenario, link: Relay) -> list[dict[str, float]]:
    """Ask again and again until the time is over or QEMU switches over."""
    lines: list[dict[str, float]] = []
    link.rate_bytes_s = scenario.rate_mib_s(0.0) * MIB
    await source.execute("migrate", {"uri": f"unix:{link.onward.with_name('out.sock')}"})
    began_s, is_working = time.monotonic(), True
    while (at_s := time.monotonic() - began_s) < scenario.lasts_s:
        link.rate_bytes_s = scenario.rate_mib_s(at_s) * MIB
        if is_working is not scenario.works(at_s):
            is_working = not is_working
            await source.execute("cont" if is_working else "stop")
        report = await source.execute("query-migrate")
        if report["status"] not in ("setup", "active"):
            break
        if report["status"] == "active":
            lines.append(line_of(report, at_s))
        await asyncio.sleep(PERIOD_S)
    return lines


def line_of(report: dict[str, Any], at_s: float) -> dict[str, float]:
    """Pick the numbers that the engine is fed with."""
    ram = report["ram"]
    return {
        "at_s": round(at_s, 3),
        "pass_count": ram["dirty-sync-count"],
        "remaining_bytes": ram["remaining"],
        "bytes_per_second": round(ram["mbps"] * 1e6 / 8),
        "dirty_bytes_per_second": ram["dirty-pages-rate"] * ram["page-size"],
    }


def main() -> None:
    """Record the scenarios that are named, or all."""
    DIRECTORY.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCENARIOS:
        lines = asyncio.run(record(SCENARIOS[name]))
        text = ",\n".join(json.dumps(line) for line in lines)
        (DIRECTORY / f"{name}.json").write_text(f"[\n{text}\n]\n")
        print(f"{name}: {len(lines)} lines, pass {lines[-1]['pass_count'] if lines else 0}")


if __name__ == "__main__":
    main()
