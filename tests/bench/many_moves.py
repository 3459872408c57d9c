"""Many moves on two agents: how their memory grows.

    .venv/bin/python -m tests.bench.many_moves [COUNT]

One small guest goes there and back by every way in turn; what each agent has resident is printed, with the part that is its own
and the descriptors that it holds. It ends with an error when an agent takes more than it may; nothing is written.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from deploy.lab.fleet import HOSTS, Fleet
from tests.bench.report import MOST_AGENT_BYTES
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State

AGENTS = ("agent-a", "agent-b")
PRINTED_EVERY = 20
_MEGA = 1e6


def main() -> None:
    """Move, print and judge."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    try:
        with Fleet(directory) as fleet:
            asyncio.run(measure(fleet, count))
    finally:
        shutil.rmtree(directory)


async def measure(fleet: Fleet, count: int) -> None:
    """Move a guest so often."""
    processes = [psutil.Process(fleet.pid(name)) for name in AGENTS]
    guest_directory = fleet.directory / "guest"
    guest_directory.mkdir()
    async with Lab(fleet, guest_directory) as lab:
        print(f"{'':10} {'   '.join(f'{name:>34}' for name in AGENTS)}")
        show("at first", processes)
        guest = await lab.start_guest()
        for number in range(count):
            there, options = HOSTS[1 - number % 2], tuple(WAYS.values())[number // 2 % len(WAYS)]
            outcome = await (await lab.start_move(guest.name, there, options())).outcome()
            if outcome.state != State.STATE_SUCCEEDED:
                raise SystemExit(f"move {number + 1} did not succeed: {outcome.error}")
            if (number + 1) % PRINTED_EVERY == 0:
                show(f"{number + 1} moves", processes)
        guest.assert_whole()
        await lab.tidy()
        show("at the end", processes)
    largest = max(process.memory_info().rss for process in processes)
    if largest > MOST_AGENT_BYTES:
        raise SystemExit(f"an agent has {largest / _MEGA:.1f} MB resident, it may have {MOST_AGENT_BYTES / _MEGA:.0f}")


def show(when: str, processes: list[psutil.Process]) -> None:
    """Print what each process holds."""
    columns = []
    for process in processes:
        memory = process.memory_info()
        own, held = (memory.rss - memory.shared) / _MEGA, process.num_fds()
        columns.append(f"{memory.rss / _MEGA:6.1f} MB, {own:5.1f} its own, {held:3d} open")
    print(f"{when:10} {'   '.join(f'{column:>34}' for column in columns)}", flush=True)


if __name__ == "__main__":
    main()
