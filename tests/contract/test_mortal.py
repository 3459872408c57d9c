"""A probe ends with the agent that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from agent.qemu.identity import ProcessIdentity

_STARTER = """
import subprocess, sys, time
from agent.qemu.mortal import dying_with_us
child = subprocess.Popen([*dying_with_us(), "sleep", "1000"], start_new_session=True)
while open(f"/proc/{child.pid}/comm").read().strip() != "sleep":
    time.sleep(0)
print(child.pid, flush=True)
sys.stdin.read()
"""


async def test_a_killed_agent_leaves_no_probe_behind():
    agent = subprocess.Popen(  # noqa: ASYNC220 - stands for an agent
        [sys.executable, "-c", _STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with agent:
        assert agent.stdout is not None
        probe = ProcessIdentity.of(int(agent.stdout.readline()))

        agent.send_signal(signal.SIGKILL)

        await probe.wait_exit()
        assert not probe.is_alive()
