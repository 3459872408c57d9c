"""Sides of migrations that an agent holds and no coordinator drives, for `ferry doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.advice import migration_command
from common.errors import FerryError, NotFound
from ferry.agent.v1 import doctor_service_pb2 as doctor_pb
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from coordinator.cli.link import Agent, Link

_VERBS = {
    agent_pb.Advice.COMMAND_FENCE: "fence",
    agent_pb.Advice.COMMAND_RELEASE: "release",
    agent_pb.Advice.COMMAND_RECOVER: "recover",
}


async def undriven_sides(agent: Agent, link: Link) -> list[doctor_pb.Finding]:
    """Return the sides on a host that wait for a coordinator in vain; those that end by themselves are none.

    Raises:
        FerryError: the agent does not answer.
    """
    request = agent_pb.ListMigrationsRequest(unfinished=True)
    halves = (await agent.peer.read(agent.stub.ListMigrations, request)).migrations
    waiting = [half for half in halves if half.advice]
    return [_finding(agent, half, why) for half in waiting if (why := await _why_undriven(link, half.id))]


async def _why_undriven(link: Link, migration_id: str) -> str:
    """Say why no coordinator drives a migration; empty when one does."""
    try:
        request = pb.GetMigrationRequest(migration_id=migration_id)
        await link.coordinator.read(link.coordinator.stub.GetMigration, request)
    except NotFound:
        return "the coordinator does not know it"
    except FerryError as error:
        return f"no coordinator answers ({error.text})"
    return ""


def _finding(agent: Agent, half: agent_pb.Migration, why: str) -> doctor_pb.Finding:
    role = "source" if half.role == agent_pb.Migration.ROLE_SOURCE else "destination"
    return doctor_pb.Finding(
        vm_name=half.vm_name,
        kind="MIGRATION_WITHOUT_COORDINATOR",
        name=half.id,
        text=f"migration {half.id}: this host is its {role} (phase {half.phase}) and {why}, so nothing ends it",
        advice="; ".join(_way(agent, half, advice) for advice in half.advice if advice.command in _VERBS),
    )


def _way(agent: Agent, half: agent_pb.Migration, advice: agent_pb.Advice) -> str:
    command = migration_command(_VERBS[advice.command], half.id, host=agent.host, is_forced=advice.is_forced)
    return f"{advice.condition}: {command}"
