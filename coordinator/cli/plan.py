"""`ferry plan`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Link
from coordinator.cli.migrate import NO_WISHES, Wishes, wished_options
from coordinator.cli.options import DEFAULT_SETTINGS, Output, Settings, Vm
from coordinator.cli.plan_view import run_plan
from coordinator.cli.screen import Format, Screen
from coordinator.cli.wishes_budget import NO_BUDGET, BudgetWishes
from coordinator.cli.wishes_disks import NO_DISKS, DisksWishes
from coordinator.cli.wishes_means import NO_MEANS, MeansWishes
from coordinator.cli.wishes_modes import NO_MODES, ModesWishes
from coordinator.cli.wishes_post_copy import NO_POST_COPY, PostCopyWishes
from ferry.coordinator.v1 import coordinator_service_pb2 as pb


async def plan(  # noqa: PLR0913 -- an option each
    vm: Vm,
    /,
    *,
    to: Annotated[str, Parameter(metavar="HOST", help="The host that it would go to.")],
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
    output: Output = Format.TABLE,
    settings: Settings = DEFAULT_SETTINGS,
) -> ExitCode:
    """Say what stands in the way of a move, and what it is going to be.

    Takes some five seconds, in which the guest is watched and the way is measured. Nothing is changed. A move with the same
    options in the next ten minutes keeps what was predicted.

    Exit codes: 0 nothing stands in the way; 1 something does.
    """
    options = wished_options(wishes, means, post_copy, budget, modes, disks)
    request = pb.PlanMigrationRequest(vm=vm, destination_host=to, source_host=from_, options=options)
    async with Link(settings) as link:
        return await run_plan(link.coordinator, request, Screen(), output)
