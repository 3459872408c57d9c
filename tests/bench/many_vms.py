"""Many VMs on one agent: how long a list takes, how soon a new agent has found them, what it costs to watch them.

    .venv/bin/python -m tests.bench.many_vms [COUNT]

Guests are tiny and stand still from the start, so that what is measured is the agent. It prints; nothing is written.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from deploy.lab.fleet import Fleet, Security

IDLE_S = 10.0
RUNS = 5
TICKS_PER_S = 100


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    try:
        with Fleet(directory, security=Security.INSECURE) as fleet:
            measure(fleet, count)
    finally:
        shutil.rmtree(directory)


def measure(fleet: Fleet, count: int) -> None:
    """Start the guests and look."""
    began = time.monotonic()
    for index in range(count):
        definition = fleet.directory / f"{index}.xml"
        definition.write_text(
            f"<domain type='qemu'><name>vm{index}</name><uuid>{uuid4()}</uuid><memory>4096</memory>"
            "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><devices/></domain>"
        )
        fleet.ferry("vm", "create", str(definition), "--paused", "--host", "host-a", check=True)
    print(f"{count} guests started in {time.monotonic() - began:.1f} s")
    listed_s = min(listing_s(fleet, count) for _ in range(RUNS))
    print(f"ferry vm ls of all hosts       {listed_s:.3f} s")
    print(f"ferry version (start alone)    {min(took_s(fleet, 'version') for _ in range(RUNS)):.3f} s")
    before = cpu_s(fleet.pid("agent-a"))
    time.sleep(IDLE_S)
    print(f"agent idle                     {(cpu_s(fleet.pid('agent-a')) - before) / IDLE_S:.2%} of a core")
    print(f"agent memory                   {memory_mib(fleet.pid('agent-a')):.0f} MiB")
    fleet.kill("agent-a")
    began = time.monotonic()
    fleet.restart("agent-a")
    served_s = time.monotonic() - began
    attached = listing_s(fleet, count)
    print(f"killed agent serves again      {served_s:.2f} s, and has listed all {attached:.2f} s later")
    print(f"its memory                     {memory_mib(fleet.pid('agent-a')):.0f} MiB")


def listing_s(fleet: Fleet, count: int) -> float:
    """Time a list, which has to have every guest."""
    began = time.monotonic()
    listed = fleet.ferry("vm", "ls", check=True).stdout
    lasted_s = time.monotonic() - began
    found = listed.count("paused")
    if found != count:
        raise SystemExit(f"{found} guests are listed as paused, {count} were started")
    return lasted_s


def took_s(fleet: Fleet, *arguments: str) -> float:
    """Time a command."""
    began = time.monotonic()
    fleet.ferry(*arguments, check=True)
    return time.monotonic() - began


def cpu_s(pid: int) -> float:
    """Read what a process has used of CPUs. Source: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mib(pid: int) -> float:
    """Read what a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main()
