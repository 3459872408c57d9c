"""`ferry vm migration-stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter
from rich.console import Group
from rich.text import Text

from common.errors import NotFound
from coordinator.cli.exits import FINAL_STATES, ExitCode
from coordinator.cli.link import Link
from coordinator.cli.options import DEFAULT_SETTINGS, Host, Output, Settings, Switch, Vm
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen, pairs
from coordinator.cli.statistics import statistics_table
from coordinator.cli.units import format_duration
from coordinator.cli.words import state_word
from ferry.agent.v1 import statistics_pb2 as agent_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_ASKED_COUNT = 1000
Statistics: TypeAlias = "pb.Migration | agent_pb.MigrationStatistics"


async def migration_stats(
    vm: Vm,
    /,
    *,
    completed: Annotated[Switch, Parameter(help="Of what has ended, the newest first, instead of what runs.")] = False,
    host: Host = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Show the figures of a VM's migration.

    The coordinator is asked, which keeps them for ever; with --host that host's agent, which keeps the last 20 of a VM, its own
    half of each. The table shows the newest one, the other formats all of them as a list.
    """
    async with Link(settings) as link:
        found = await _of_agent(link, host, vm) if host else await _of_coordinator(link, vm)
    wanted = [one for one in found if _has_ended(one) is completed]
    if not wanted:
        which = "has ended" if completed else "runs"
        hint = "" if completed else "; --completed shows those that have ended"
        raise NotFound(f"no migration of {vm} {which}{f' on {host}' if host else ''}{hint}", reason="MIGRATION_UNKNOWN")
    Screen().show([to_plain(one) for one in wanted], lambda: _details(wanted[0]), output)
    return ExitCode.DONE


async def _of_coordinator(link: Link, vm: str) -> Sequence[Statistics]:
    coordinator = link.coordinator
    request = pb.ListMigrationsRequest(vm=vm, page_size=_ASKED_COUNT)
    found = (await coordinator.read(coordinator.stub.ListMigrations, request)).migrations
    begun = [one for one in found if one.vm_uuid]
    return [one for one in begun if one.vm_uuid == begun[0].vm_uuid]  # others had the same name earlier


async def _of_agent(link: Link, host: str, vm: str) -> Sequence[Statistics]:
    agent = await link.agent(host)
    request = agent_pb.ListMigrationStatisticsRequest(vm=vm)
    return (await agent.peer.read(agent.stub.ListMigrationStatistics, request)).migrations


def _has_ended(one: Statistics) -> bool:
    return one.state in FINAL_STATES if isinstance(one, pb.Migration) else one.HasField("end_time")


def _details(one: Statistics) -> RenderableType:
    if isinstance(one, pb.Migration):
        rows = [("vm", one.vm_name), ("migration", one.id), ("from", one.source_host), ("to", one.destination_host)]
        rows.append(("state", state_word(one)))
    else:
        rows = [("vm", one.vm_name), ("migration", one.id), ("other host", one.peer_host or "-"), ("phase", one.phase)]
    if one.error:
        rows.append(("error", f"{one.error} [{one.error_reason}]"))
    if one.HasField("downtime"):
        rows.append(("downtime", format_duration(one.downtime.total.ToNanoseconds() / 1e9)))
    if not one.HasField("progress"):
        return pairs([*rows, ("figures", "none")])
    return Group(pairs(rows), Text(), statistics_table(one.progress))
