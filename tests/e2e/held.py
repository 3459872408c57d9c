"""A move that is held where the source has given the whole guest away and the destination's agent does not answer Resume."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import Lab, frozen
from tests.e2e.move import Move, wishes

# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)
# Longer than a test needs, so that nothing is given up meanwhile.
PATIENT_S = 20.0


async def start_held(lab: Lab) -> tuple[Guest, Move]:
    """Start a guest and a move of it that `sent` can hold."""
    await lab.wait_reachable()
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=1, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")
    return guest, move


@asynccontextmanager
async def sent(lab: Lab, guest: Guest, move: Move) -> AsyncIterator[Callable[[], None]]:
    """Bring a move of `start_held` into `Sent`, its destination's agent stopped; give what lets that agent go on.

    The source gives nothing to an agent that is stopped before: so it is stopped while the destination's QEMU reads nothing.
    """
    qemus = {host: await lab.qemu_pid(host) for host in ("host-a", "host-b")}
    with frozen(lab.fleet.pid("agent-a")) as let_source_go_on:
        await guest.wait_stopped(qemus["host-a"], 0.1)  # it waits for a word
        with frozen(qemus["host-b"]) as let_qemu_go_on:
            let_source_go_on()
            await move.wait_source_phase("Switching")
            with frozen(lab.fleet.pid("agent-b")) as let_agent_go_on:
                let_qemu_go_on()
                await move.wait_source_phase("Sent")
                yield let_agent_go_on
