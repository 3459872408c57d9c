"""The guardian of one move: a process that outlives the agent and keeps the guest from standing still for want of it.

    python -m agent.guardian STATE_DIR FD

FD is its line to the agent that started it. docs/decisions/0025 says why it is a process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from agent.guardian.ear import Ear
from agent.guardian.stand_in import StandIn
from agent.qemu.identity import NoSuchProcess, ProcessIdentity


async def _run(line: socket.socket, agent: ProcessIdentity) -> None:
    ear = Ear(line, agent)
    ear.listen()
    await StandIn(ear).run()


def main() -> None:
    """Guard one move."""
    line = socket.socket(fileno=int(sys.argv[2]))
    try:
        agent = ProcessIdentity.of(os.getppid())
    except NoSuchProcess:  # it ended just now, which the line tells
        agent = ProcessIdentity(os.getppid(), 0)
    asyncio.run(_run(line, agent))


if __name__ == "__main__":
    main()
