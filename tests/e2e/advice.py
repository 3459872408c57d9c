"""What an agent advises about its half of a migration, done as an operator does it: by the command, at the agent's address."""

from __future__ import annotations

import asyncio

from common.advice import migration_command
from ferry.agent.v1 import migration_pb2 as pb
from tests.e2e.lab import Lab
from tests.e2e.move import Move

_VERBS = {pb.Advice.COMMAND_FENCE: "fence", pb.Advice.COMMAND_RELEASE: "release"}


async def take_advice(lab: Lab, move: Move, host: str, words: str) -> pb.Migration:
    """Carry out the advice of a host's half whose condition has these words; return the half after it.

    Raises:
        AssertionError: there is no such advice, or the command is refused.
    """
    agent = lab.agents[host]
    request = pb.GetMigrationRequest(migration_id=move.id)
    half = (await agent.GetMigration(request)).migration
    (advice,) = [one for one in half.advice if words in one.condition]
    line = migration_command(_VERBS[advice.command], move.id, host=lab.fleet.agent_address(host), is_forced=advice.is_forced)
    yes = ("--yes",) if advice.command == pb.Advice.COMMAND_FENCE else ()
    done = await asyncio.to_thread(lab.fleet.ferry, *line.split()[1:], *yes)
    assert done.returncode == 0, done.stdout + done.stderr
    return (await agent.GetMigration(request)).migration
