"""`ferry migration`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from common.errors import FerryError, InvalidRequest
from coordinator.cli.exits import ExitCode, of_migration
from coordinator.cli.interrupts import ask_at_terminal, find_terminal
from coordinator.cli.link import Coordinator, Link, duration_message, new_request_id
from coordinator.cli.migrate import follow, show_result
from coordinator.cli.options import (
    DEFAULT_PATIENCE_S,
    DEFAULT_SETTINGS,
    Bandwidth,
    MaxDowntime,
    MigrationId,
    Misused,
    Output,
    Patience,
    Settings,
    Switch,
    whole_number,
)
from coordinator.cli.plain import to_plain
from coordinator.cli.report import migration_details, migrations_table
from coordinator.cli.screen import Format, Screen, printable
from coordinator.cli.spans import parse_traces, tree
from coordinator.cli.statistics import statistics_table
from coordinator.cli.trace_tree import draw, spans_plain
from coordinator.cli.wishes_budget import MaxDuration
from coordinator.cli.wishes_disks import DiskBandwidth, check_disk_bandwidth
from coordinator.cli.words import outcome, short_id, state_word
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

app = App(name="migration", help="Look at migrations, past and running, and steer those that run.")

MAX_LISTED = 1000


@app.command(name="ls")
async def list_all(
    vm: Annotated[str, Parameter(show_default=False, help="Only those of this VM, by name or UUID.")] = "",
    /,
    *,
    limit: Annotated[int, Parameter(converter=whole_number, help="At most so many, 1 to 1000.")] = 50,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """List migrations, the newest first."""
    if not 1 <= limit <= MAX_LISTED:
        raise Misused(f"--limit {limit} is out of range: 1 to {MAX_LISTED}")
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.ListMigrationsRequest(vm=vm, page_size=limit)
        found = (await coordinator.read(coordinator.stub.ListMigrations, request)).migrations
    Screen().show([to_plain(migration) for migration in found], lambda: migrations_table(found), output)
    return ExitCode.DONE


@app.command
async def show(
    migration_id: MigrationId,
    /,
    *,
    trace: Annotated[Switch, Parameter(help="Draw its trace instead: spans, times, bars.")] = False,
    stats: Annotated[
        Switch, Parameter(help="Show every figure of QEMU instead; other formats than a table always have them.")
    ] = False,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Show one migration."""
    screen = Screen()
    async with Link(settings) as link:
        coordinator = link.coordinator
        migration = await _get(coordinator, migration_id)
        if not trace:
            details = (lambda: statistics_table(migration.progress)) if stats else (lambda: migration_details(migration))
            screen.show(to_plain(migration), details, output)
            for line in () if migration.state == pb.Migration.STATE_SUCCEEDED else outcome(migration):
                screen.note(line)
            return ExitCode.DONE
        answer = await coordinator.read(coordinator.stub.GetTrace, pb.GetTraceRequest(migration_id=migration.id))
    spans = parse_traces(answer.traces_data)
    rows = tree(spans)
    plain = {"migration_id": migration.id, "trace_id": migration.trace_id, "spans": spans_plain(rows, spans)}
    width = screen.data.width if screen.data.is_terminal else None
    screen.show(plain, lambda: draw(rows, width=width), output)
    if not spans:
        screen.warn("no span of this migration is kept any more")
    return ExitCode.DONE


@app.command
async def watch(
    migration_id: MigrationId,
    /,
    *,
    patience: Patience = DEFAULT_PATIENCE_S,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Follow a migration to its end; the exit code is that of its outcome.

    Ctrl-C only ends the watching.
    """
    screen = Screen()
    async with Link(settings) as link:
        migration = await _get(link.coordinator, migration_id)
        sight = await follow(link.coordinator, migration, screen, patience_s=float(patience), may_cancel=False)
    return show_result(screen, sight, output)


@app.command
async def cancel(
    migration_id: MigrationId,
    /,
    *,
    detach: Annotated[Switch, Parameter(help="Do not wait.")] = False,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Cancel a migration and wait for the outcome; exit code 0 if it was cancelled."""
    screen = Screen()
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.CancelMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
        migration = (await coordinator.change(coordinator.stub.CancelMigration, request)).migration
        if detach:
            return _changed(screen, migration, output)
        sight = await follow(coordinator, migration, screen, patience_s=float(DEFAULT_PATIENCE_S), may_cancel=False)
    show_result(screen, sight, output, wanted=pb.Migration.STATE_CANCELLED)
    match sight.migration.state:
        case pb.Migration.STATE_CANCELLED:
            return ExitCode.DONE
        case pb.Migration.STATE_SUCCEEDED:
            screen.note("the cancel came too late: the guest had already changed hands")
            return ExitCode.REFUSED
        case _:
            return ExitCode.INTERRUPTED if sight.is_left else of_migration(sight.migration)


@app.command
async def pause(migration_id: MigrationId, /, *, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS) -> ExitCode:
    """Stop the guest for the rest of the transfer, so that it ends soon; it runs again on the destination."""
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.PauseMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
        migration = (await coordinator.change(coordinator.stub.PauseMigration, request)).migration
    return _changed(Screen(), migration, output)


@app.command(name="continue")
async def continue_(
    migration_id: MigrationId, /, *, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS
) -> ExitCode:
    """Let a guest that was stopped for the transfer run again while it lasts."""
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.UnpauseMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
        migration = (await coordinator.change(coordinator.stub.UnpauseMigration, request)).migration
    return _changed(Screen(), migration, output)


@app.command
async def postcopy(
    migration_id: MigrationId, /, *, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS
) -> ExitCode:
    """Let the guest go now and the rest of its memory after it; needs ferry migrate --postcopy allowed.

    It always ends, and cannot be cancelled from then on.
    """
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.StartPostcopyRequest(request_id=new_request_id(), migration_id=migration_id)
        migration = (await coordinator.change(coordinator.stub.StartPostcopy, request)).migration
    return _changed(Screen(), migration, output)


@app.command
async def recover(
    migration_id: MigrationId, /, *, output: Output = Format.TABLE, settings: Settings = DEFAULT_SETTINGS
) -> ExitCode:
    """Make a connection that was lost in post-copy anew, now."""
    async with Link(settings) as link:
        coordinator = link.coordinator
        request = pb.RecoverMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
        migration = (await coordinator.change(coordinator.stub.RecoverMigration, request)).migration
    return _changed(Screen(), migration, output)


@app.command(name="set")
async def set_limits(  # noqa: PLR0913 -- an option each
    migration_id: MigrationId,
    /,
    *,
    bandwidth: Bandwidth = None,
    max_downtime: MaxDowntime = None,
    max_duration: MaxDuration = None,
    disk_bandwidth: DiskBandwidth = None,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Change what a running migration may cost."""
    if bandwidth is None and max_downtime is None and max_duration is None and disk_bandwidth is None:
        raise Misused("nothing to set: say --bandwidth, --max-downtime, --max-duration or --disk-bandwidth")
    check_disk_bandwidth(disk_bandwidth)
    request = pb.UpdateMigrationRequest(
        request_id=new_request_id(),
        migration_id=migration_id,
        bandwidth_bytes_per_second=bandwidth,
        max_downtime=None if max_downtime is None else duration_message(max_downtime),
        max_duration=None if max_duration is None else duration_message(max_duration),
        disk_bandwidth_bytes_per_second=disk_bandwidth,
    )
    async with Link(settings) as link:
        coordinator = link.coordinator
        migration = (await coordinator.change(coordinator.stub.UpdateMigration, request)).migration
    return _changed(Screen(), migration, output)


@app.command
async def fence(
    migration_id: MigrationId,
    /,
    *,
    host: Annotated[str, Parameter(metavar="HOST", help="The host that owns the guest from now on; name or address.")],
    yes: Annotated[Switch, Parameter(name=("--yes", "-y"), help="Do not ask.")] = False,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Give the guest of a waiting migration to one host, because the other host is dead for good.

    If the other host is alive after all, the guest may then run twice and destroy its disks: power it off first.
    """
    screen = Screen()
    async with Link(settings) as link:
        full_id = await _full_id(link, migration_id, screen)
        if not yes:
            _ask_whether_dead(screen, host)
        agent = await link.agent(host)
        request = agent_pb.FenceMigrationRequest(request_id=new_request_id(), migration_id=full_id, peer_is_dead=True)
        half = (await agent.peer.change(agent.stub.FenceMigration, request)).migration
    screen.note(f"{half.vm_name} is now owned by {agent.host}")
    if output is not Format.TABLE:
        screen.show(_without_token(half), lambda: "", output)
    return ExitCode.DONE


@app.command
async def release(
    migration_id: MigrationId,
    /,
    *,
    host: Annotated[
        str | None,
        Parameter(metavar="HOST", help="The host that lets go, by name or its agent's address; without it: the coordinator."),
    ] = None,
    force: Annotated[Switch, Parameter(help="Also where that may end the only copy of the guest.")] = False,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """End one host's side of a migration at its agent, without a coordinator; or give up hosts that are dead for good.

    With --host, what was not sent is kept, what came is kept, what moved on is let go. Never makes a second copy of the guest.
    `ferry doctor` names the sides that no coordinator drives, with the command for each.

    Without it, the coordinator lets the host that answers let go of its side, and waits for the other one no longer.
    """
    screen = Screen()
    if host is None and force:
        raise Misused("--force is for one side: say which by --host")
    async with Link(settings) as link:
        if host is None:
            coordinator = link.coordinator
            asked = pb.ReleaseMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
            return _changed(screen, (await coordinator.change(coordinator.stub.ReleaseMigration, asked)).migration, output)
        full_id = await _full_id(link, migration_id, screen)
        agent = await link.agent(host)
        request = agent_pb.ReleaseMigrationRequest(request_id=new_request_id(), migration_id=full_id, force=force)
        half = (await agent.peer.change(agent.stub.ReleaseMigration, request)).migration
    state = "has let go of it" if half.is_final else "is letting go of it"
    screen.note(f"{half.vm_name}: {agent.host} {state} ({half.phase})")
    for warning in half.warnings:
        screen.warn(warning)
    if output is not Format.TABLE:
        screen.show(_without_token(half), lambda: "", output)
    return ExitCode.DONE


async def _get(coordinator: Coordinator, migration_id: str) -> pb.Migration:
    request = pb.GetMigrationRequest(migration_id=migration_id)
    return (await coordinator.read(coordinator.stub.GetMigration, request)).migration


async def _full_id(link: Link, migration_id: str, screen: Screen) -> str:
    """Complete an id, if the coordinator can be asked; fencing must work without it."""
    try:
        return (await _get(link.coordinator, migration_id)).id
    except FerryError as error:
        screen.warn(f"the id is taken as it is: {error.text}")
        return migration_id


def _ask_whether_dead(screen: Screen, host: str) -> None:
    if find_terminal() is None:
        raise Misused("nobody can be asked on this stdin: say --yes if the other host is powered off")
    screen.note("the other host must be powered off: if its QEMU still runs, the guest will run twice")
    if not ask_at_terminal(f"own the guest on {printable(host)}? [y/N] "):
        raise InvalidRequest("not confirmed; nothing was changed", reason="NOT_CONFIRMED")


def _changed(screen: Screen, migration: pb.Migration, output: Format) -> ExitCode:
    screen.note(f"{migration.vm_name}: migration {short_id(migration.id)} is {state_word(migration)}")
    if output is not Format.TABLE:
        screen.show(to_plain(migration), lambda: "", output)
    return ExitCode.DONE


def _without_token(half: agent_pb.Migration) -> dict[str, object]:
    return {name: value for name, value in to_plain(half).items() if name != "resume_token"}
