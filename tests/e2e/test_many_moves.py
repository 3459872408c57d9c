"""Many moves on the same agents; what they do to memory is told by `python -m tests.bench.many_moves`."""

from __future__ import annotations

import psutil

from deploy.lab.fleet import HOSTS
from tests.e2e.guest import Guest
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State
from tests.e2e.waiting import until

ROUNDS = 2
COMES_AND_GOES = 4  # connections of clients, and files that are just being written; a leak would be of 8 in each agent


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
