"""Many moves on the same agents; what they do to memory is told by `python -m tests.bench.many_moves`."""

from __future__ import annotations

from uuid import uuid4

import psutil

from deploy.lab.fleet import HOSTS
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, wishes
from tests.e2e.waiting import until
from tests.guests.console import Console

ROUNDS = 2
COMES_AND_GOES = 4  # connections of clients, and files that are just being written; a leak would be of 8 in each agent


async def start_named(lab: Lab, name: str) -> Guest:
    """Start a small guest with a disk and a serial line of its own."""
    directory, uuid = lab.directory / name, uuid4()
    directory.mkdir()
    plan = Plan(name=name, megabytes=1, dirty_mib_s=0.1, period_ms=50.0)
    await lab.define("host-a", domain(plan, directory, uuid=uuid))
    await lab.start_vm("host-a", name)
    return await lab.listen(Guest(name, uuid, Console(directory / "serial.log"), directory))


async def test_moves_beyond_what_a_host_sends_at_a_time_are_queued_and_arrive(lab: Lab):
    guests = [await start_named(lab, f"web{number}") for number in range(6)]

    moves = [await lab.start_move(guest.name, options=wishes(bandwidth_mib_s=8.0)) for guest in guests]
    last = await moves[-1].wait(lambda move: move.error_reason == "QUEUED", "a queued move")
    outcomes = [await move.outcome() for move in moves]

    assert "host-a is sending 4 VMs, at most 4 at a time" in last.error
    assert [(outcome.state, outcome.error) for outcome in outcomes] == [(State.STATE_SUCCEEDED, "")] * len(guests)
    for guest in guests:
        await guest.console.wait_sweeps(1)
        guest.assert_whole()


async def test_moves_leave_no_descriptors_in_the_agents(lab: Lab):
    guest = await lab.start_guest()
    await move_there_and_back_by_every_way(lab, guest)
    agents = [psutil.Process(lab.fleet.pid(name)) for name in ("agent-a", "agent-b")]
    held = [agent.num_fds() for agent in agents]

    for _ in range(ROUNDS):
        await move_there_and_back_by_every_way(lab, guest)

    def nothing_is_left() -> bool:
        return all(agent.num_fds() <= before + COMES_AND_GOES for agent, before in zip(agents, held, strict=True))

    await until(nothing_is_left, f"about {held} open descriptors again")
    guest.assert_whole()


async def move_there_and_back_by_every_way(lab: Lab, guest: Guest) -> None:
    """Move a guest of the first host to the other one and back, by each way."""
    for options in WAYS.values():
        for there in reversed(HOSTS):
            outcome = await (await lab.start_move(guest.name, there, options())).outcome()
            assert outcome.state == State.STATE_SUCCEEDED, outcome.error
