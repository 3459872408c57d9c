"""While a guest is half on each host it is followed, never finished or undone, whoever is started again."""

from __future__ import annotations

from pathlib import Path

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from coordinator.halves import Location, MoveState
from tests.fakes.world import Outcome, World
from tests.unit.coordinator.desk import between

CAUSE = Cause("QEMU ended, so the guest is lost", "QEMU_ENDED")


async def test_a_guest_in_post_copy_is_finished_only_when_all_of_it_is_there(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.go_into_post_copy()
        told = await here.wait_until(migration_id, state=MoveState.POST_COPY)
        before = list(world.changes)
        world.apply("host-b", inc.QemuLoaded())
        world.apply("host-a", out.QemuCompleted())
        move = await here.wait_end(migration_id)

    assert told.location is Location.DESTINATION
    assert ("host-b", "Finish") not in before
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}


async def test_a_source_agent_that_is_away_in_post_copy_is_waited_for(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.go_into_post_copy()
        await here.wait_until(migration_id, state=MoveState.POST_COPY)
        await fleet.stop("host-a")
        await here.wait_until(migration_id, state=MoveState.WAITING)
        before = list(world.changes)
        await fleet.start("host-a")
        await here.wait_until(migration_id, state=MoveState.POST_COPY)
        world.apply("host-b", inc.QemuLoaded())
        world.apply("host-a", out.QemuCompleted())
        move = await here.wait_end(migration_id)

    assert not {("host-b", "Finish"), ("host-a", "Confirm"), ("host-b", "Abandon")} & set(before)
    assert move.state is MoveState.SUCCEEDED


async def test_a_source_that_ends_in_post_copy_loses_the_guest_and_what_is_left_of_it_is_ended(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.go_into_post_copy()
        await here.wait_until(migration_id, state=MoveState.POST_COPY)
        world.apply("host-a", out.QemuExited(CAUSE))
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.FAILED, Location.NOWHERE, CAUSE.text)
    assert world.names == {"host-a": "Lost", "host-b": "Lost"}
