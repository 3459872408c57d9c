"""What Ferry adds to the start of a VM: define and start through the agent, against the same QEMU started by hand.

    .venv/bin/python -m tests.bench.start [ROUNDS]

Both take turns, each until QEMU answers a query; the guest is a sector that does nothing. It prints; nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import structlog

from tests.bench.qmp import Qmp
from tests.qemu.vms import agent, guest_xml

ROUNDS = 11
RETRY_S = 0.001


async def main(rounds: int) -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(prefix="fb") as name:
        place = Path(name)
        ours: list[float] = []
        raw: list[float] = []
        async with agent(place / "s") as vms:
            for index in range(rounds):
                began = time.perf_counter()
                vm = await vms.define(guest_xml(place, uuid4(), name=f"w{index}"), "start benchmark")
                await vms.start(vm)
                ours.append(time.perf_counter() - began)
                argv = vm.get_running().argv
                await vms.stop(vm, force=True)
                raw.append(await start_by_hand(argv, place / f"{index}.qmp"))
    ratio = statistics.median(mine / bare for mine, bare in zip(ours, raw, strict=True))
    print(f"define and start, Ferry   {statistics.median(ours) * 1000:.0f} ms")
    print(f"the same QEMU by hand     {statistics.median(raw) * 1000:.0f} ms")
    print(f"ratio, median of {rounds} pairs  {ratio:.2f}")


async def start_by_hand(argv: Sequence[str], socket: Path) -> float:
    """Start the same command line with a QMP socket of its own; return the seconds until it answered."""
    words = list(argv)
    words[words.index("-chardev") + 1] = f"socket,id=qmp0,path={socket},server=on,wait=off"
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    try:
        qmp = await _connect(socket)
        await qmp.execute("query-status")
        lasted_s = time.perf_counter() - began
        qmp.close()
        return lasted_s
    finally:
        process.kill()
        await process.wait()


async def _connect(socket: Path) -> Qmp:
    while True:
        try:
            return await Qmp.open(socket)
        except OSError:
            await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
