"""`ferry migrate`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from common.errors import FerryError, Unreachable
from coordinator.cli.definition_file import read_definition
from coordinator.cli.exits import ExitCode, of_migration
from coordinator.cli.follow import Follower, how_to_go_on
from coordinator.cli.interrupts import find_terminal
from coordinator.cli.link import Link, Undecided, duration_message, new_request_id
from coordinator.cli.options import (
    DEFAULT_PATIENCE_S,
    DEFAULT_SETTINGS,
    Bandwidth,
    MaxDowntime,
    Misused,
    Output,
    Patience,
    Settings,
    Switch,
    Vm,
    whole_number,
)
from coordinator.cli.plain import to_plain
from coordinator.cli.plan_view import run_plan
from coordinator.cli.progress import open_progress
from coordinator.cli.report import result_table
from coordinator.cli.screen import Format, Screen
from coordinator.cli.tracing import CommandTrace, mark_failed
from coordinator.cli.wishes_budget import NO_BUDGET, BudgetWishes, OnTimeout
from coordinator.cli.wishes_disks import NO_DISKS, DisksWishes
from coordinator.cli.wishes_means import NO_MEANS, MeansWishes
from coordinator.cli.wishes_modes import NO_MODES, ModesWishes
from coordinator.cli.wishes_post_copy import NO_POST_COPY, PostCopyWishes, When
from coordinator.cli.words import outcome
from ferry.common.v1 import migration_pb2 as common
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from coordinator.cli.follow import Sight
    from coordinator.cli.link import Coordinator

MAX_MULTIFD_CHANNELS = 255


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Wishes:
    """How a VM is to be moved."""

    tunnel: Annotated[Switch, Parameter(help="Send everything through ferry-tunnel, on one port, not QEMU to QEMU.")] = False
    plain: Annotated[Switch, Parameter(help="Send guest memory unencrypted; direct transfers only.")] = False
    multifd: Annotated[int, Parameter(metavar="N", converter=whole_number, help="Number of multifd channels, 0 (none) to 255.")] = 0
    bandwidth: Bandwidth = None
    max_downtime: MaxDowntime = None
    pause: Annotated[Switch, Parameter(help="Stop the guest for the whole transfer; it runs again on the destination.")] = False
    name: Annotated[
        str,
        Parameter(metavar="NEW", show_default=False, help="Name of the VM on the destination; without it the name stays."),
    ] = ""
    migrate_uri: Annotated[
        str,
        Parameter(
            metavar="URI",
            show_default=False,
            help="Where the destination's QEMU listens: tcp:host, tcp:host:port or tcp://host:port.",
        ),
    ] = ""
    xml: Annotated[
        str,
        Parameter(
            metavar="FILE",
            show_default=False,
            help="Domain XML for the destination; may differ in what the guest cannot tell: paths, taps, displays.",
        ),
    ] = ""
    force: Annotated[Switch, Parameter(help="Go on where it cannot be proved that it is safe; the refusal says when.")] = False

    def message(self) -> common.MigrationOptions:
        """Turn the wishes into a message.

        Raises:
            Misused: they contradict each other.
        """
        if self.tunnel and self.plain:
            raise Misused("--plain is for direct transfers; a tunnel is as safe as the connection between the tunnels")
        if self.tunnel and self.migrate_uri:
            raise Misused("--migrate-uri is for direct transfers; a tunnel has an address of its own")
        if not 0 <= self.multifd <= MAX_MULTIFD_CHANNELS:
            raise Misused(f"--multifd {self.multifd} is out of range: 0 to {MAX_MULTIFD_CHANNELS}")
        return common.MigrationOptions(
            transport=common.TRANSPORT_TUNNEL if self.tunnel else common.TRANSPORT_DIRECT,
            plain=self.plain,
            multifd_channel_count=self.multifd,
            bandwidth_bytes_per_second=self.bandwidth or 0,
            max_downtime=None if self.max_downtime is None else duration_message(self.max_downtime),
            pause=self.pause,
            destination_name=self.name,
            migrate_uri=self.migrate_uri,
            destination_domain_xml=read_definition(self.xml) if self.xml else b"",
            force=self.force,
        )


NO_WISHES = Wishes()


def wished_options(  # noqa: PLR0913, PLR0917 -- a group of options each
    wishes: Wishes, means: MeansWishes, post_copy: PostCopyWishes, budget: BudgetWishes, modes: ModesWishes, disks: DisksWishes
) -> common.MigrationOptions:
    """Put everything that is wished of a move into one message.

    Raises:
        Misused: wishes contradict each other.
    """
    options = wishes.message()
    if (wished := means.message(has_multifd=wishes.multifd > 0, is_plain=wishes.plain)) is not None:
        options.means.CopyFrom(wished)
    if budget.on_timeout is OnTimeout.POSTCOPY and post_copy.postcopy is When.NEVER:
        post_copy = replace(post_copy, postcopy=When.ALLOWED)
    if post_copy != NO_POST_COPY:
        options.post_copy.CopyFrom(post_copy.message())
    options.budget.CopyFrom(budget.message())
    if modes != NO_MODES:
        options.modes.CopyFrom(modes.message())
    if disks != NO_DISKS:
        options.disks.CopyFrom(disks.message())
    return options


async def migrate(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    to: Annotated[str, Parameter(metavar="HOST", help="The host that it goes to.")],
    from_: Annotated[
        str,
        Parameter(name="--from", metavar="HOST", show_default=False, help="The host that it is on; without it: found."),
    ] = "",
    wishes: Wishes = NO_WISHES,
    means: MeansWishes = NO_MEANS,
    post_copy: PostCopyWishes = NO_POST_COPY,
    budget: BudgetWishes = NO_BUDGET,
    modes: ModesWishes = NO_MODES,
    disks: DisksWishes = NO_DISKS,
    dry_run: Annotated[Switch, Parameter(help="Change nothing: say what would stand in the way and what it would be.")] = False,
    detach: Annotated[Switch, Parameter(help="Return once it has begun; its id goes to stdout.")] = False,
    patience: Patience = DEFAULT_PATIENCE_S,
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Move a running VM to another host.

    Progress goes to stderr and, at the end, what it cost to stdout. Ctrl-C asks whether to cancel.

    Exit codes: 0 moved; 1 refused; 4 rolled back, the guest is on the source; 5 lost, the guest runs nowhere;
    6 not known.
    """
    screen = Screen()
    options = wished_options(wishes, means, post_copy, budget, modes, disks)
    if dry_run:
        async with Link(settings) as link:
            asked = pb.PlanMigrationRequest(vm=vm, destination_host=to, source_host=from_, options=options)
            return await run_plan(link.coordinator, asked, screen, output)
    request = pb.StartMigrationRequest(request_id=new_request_id(), vm=vm, destination_host=to, source_host=from_, options=options)
    trace = CommandTrace()
    async with Link(settings) as link:
        with trace.span("ferry migrate", {"vm": vm, "destination": to}) as span:
            try:
                started = await _start(link.coordinator, request, screen)
                sight = None if detach else await follow(link.coordinator, started, screen, patience_s=float(patience))
            except FerryError as error:
                mark_failed(span, error.text)
                raise
            if sight is not None and sight.migration.state != pb.Migration.STATE_SUCCEEDED:
                mark_failed(span, sight.migration.error or sight.lost)
        await trace.hand_over(link.coordinator)
    if sight is None:
        screen.show(to_plain(started), lambda: started.id, output)
        return ExitCode.DONE
    return show_result(screen, sight, output)


async def follow(
    coordinator: Coordinator, migration: pb.Migration, screen: Screen, *, patience_s: float, may_cancel: bool = True
) -> Sight:
    """Follow a migration with its progress on stderr."""
    progress = open_progress(screen)
    try:
        follower = Follower(coordinator, progress, patience_s=patience_s, may_cancel=may_cancel, answers_fd=find_terminal())
        return await follower.follow(migration)
    finally:
        progress.close()


def show_result(
    screen: Screen,
    sight: Sight,
    output: Format,
    *,
    wanted: pb.Migration.State.ValueType = pb.Migration.STATE_SUCCEEDED,
) -> ExitCode:
    """Tell how a migration ended, or why it is no longer watched; an end that is not `wanted` is told as an error."""
    migration = sight.migration
    code = of_migration(migration)
    first, *others = outcome(migration)
    if migration.state == wanted:
        screen.note(first, "bold green")
    elif sight.is_left:
        screen.note(sight.lost)
        screen.note(how_to_go_on(migration))
        return ExitCode.INTERRUPTED
    else:
        screen.fail(first)
    for line in others:
        screen.note(line)
    if sight.lost:
        screen.note(f"{sight.lost}; {how_to_go_on(migration)}")
    screen.show(to_plain(migration), lambda: result_table(migration), output)
    return code


async def _start(coordinator: Coordinator, request: pb.StartMigrationRequest, screen: Screen) -> pb.Migration:
    try:
        return (await coordinator.change(coordinator.stub.StartMigration, request)).migration
    except Undecided as error:
        if coordinator.has_answered(error):
            raise Unreachable(error.text, reason=error.reason) from error  # it did not begin, whatever the coordinator missed
        raise
    except asyncio.CancelledError:
        screen.note("left before the coordinator answered; if it has begun, ferry migration ls shows it")
        raise
