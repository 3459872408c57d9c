"""A coordinator that is killed anywhere: the next one, on the same journal, ends the move with one guest."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from common.errors import Unreachable, WrongState
from coordinator.halves import Location, MoveState
from tests.fakes.agents import fake_agents
from tests.fakes.world import Outcome, World
from tests.unit.coordinator.desk import desk

STEPS = ("Begin", "Prepare", "Perform", "Finish", "Confirm")
HEARD = [(method, moment) for method in STEPS for moment in ("before", "after") if (method, moment) != ("Begin", "before")]
SILENT = Unreachable("no answer", reason="PEER_UNREACHABLE")


def hold(world: World, method: str, moment: str) -> dict[str, asyncio.Event]:
    """Let a method wait before it acts, or before it answers."""
    holds = world.holds_before if moment == "before" else world.holds_after
    holds[method] = asyncio.Event()
    return holds


def steps_of(directory: Path) -> list[tuple[str, int, str]]:
    """Name, epoch and result of every step in the journal."""
    with closing(sqlite3.connect(directory / "journal.db")) as database:
        return list(database.execute("select name, epoch, result from steps order by step_id"))


@pytest.mark.parametrize(("method", "moment"), HEARD)
async def test_a_coordinator_killed_at_any_step_finishes_the_move_when_it_starts_again(tmp_path: Path, method: str, moment: str):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        holds = hold(world, method, moment)
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called(method)
        holds.pop(method).set()
        calls_before = len(world.changes)

        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")
    assert move.epoch == 2
    assert set(world.epochs.values()) == {2}
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}
    assert not world.was_double
    assert {"Cancel", "Abandon"}.isdisjoint(name for _, name in world.changes[calls_before:])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", STEPS)
async def test_a_coordinator_and_both_agents_killed_at_any_step_leave_one_guest(tmp_path: Path, method: str, moment: str):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        holds = hold(world, method, moment)
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called(method)
        for host in fleet.addresses:
            await fleet.stop(host)
        holds.pop(method).set()
        for host in fleet.addresses:
            await fleet.start(host)

        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert move.state in {MoveState.SUCCEEDED, MoveState.FAILED}
    assert world.runs_on() == ({"host-b"} if move.location is Location.DESTINATION else {"host-a"})
    assert (move.error != "") is (move.state is MoveState.FAILED)
    assert not world.was_double
    assert all(half.is_final for half in (world.half(host) for host in world.phases))


@pytest.mark.parametrize("method", ["Cancel", "Abandon"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_coordinator_killed_in_the_undo_ends_it_and_remembers_the_reason(tmp_path: Path, method: str, moment: str):
    world = World()
    world.faults["host-b", "Prepare"] = [WrongState("no room here", reason="NOT_ENOUGH_MEMORY")]
    world.begin("host-b", inc.Listening())
    async with fake_agents(world, tmp_path) as fleet:
        holds = hold(world, method, moment)
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called(method)
        holds.pop(method).set()

        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert (move.error, move.error_reason) == ("host-b: no room here", "NOT_ENOUGH_MEMORY")
    assert world.names == {"host-a": "Kept", "host-b": "Abandoned"}
    assert [name for _, name in world.changes].count("Begin") == 1


async def test_a_move_whose_end_was_told_is_only_undone_by_the_next_coordinator(tmp_path: Path):
    world = World(Outcome.GAVE_UP)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            hold(world, "Perform", "before")
            migration_id = (await first.start()).migration_id
            await world.wait_called("Perform")
            await fleet.stop("host-b")
            world.holds_before.pop("Perform").set()
            told = await first.wait_until(migration_id, state=MoveState.FAILED)
        await fleet.start("host-b")
        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (told.is_tidy, told.location, told.error) == (False, Location.SOURCE, "the link broke")
    assert (move.state, move.error, move.ended_at_s) == (MoveState.FAILED, "the link broke", told.ended_at_s)
    assert world.names == {"host-a": "Kept", "host-b": "Abandoned"}
    assert [name for _, name in world.changes].count("Begin") == 1


async def test_a_destination_that_has_the_guest_is_finished_though_the_source_is_dead(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        hold(world, "Finish", "before")
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called("Finish")
        world.holds_before.pop("Finish").set()
        await fleet.stop("host-a")

        async with desk(tmp_path, fleet.addresses) as second:
            waiting = await second.wait_error(migration_id, "confirm is repeated")
            names = world.names
            await fleet.start("host-a")
            move = await second.wait_end(migration_id)

    assert names["host-b"] == "Finished"
    assert waiting.location is Location.DESTINATION
    assert move.state is MoveState.SUCCEEDED


async def test_a_source_that_does_not_answer_a_new_coordinator_is_waited_for(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await first.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-a")
        async with desk(tmp_path, fleet.addresses) as second:
            waiting = await second.wait_until(migration_id, state=MoveState.WAITING)
            world.complete(Outcome.SENT)
            await fleet.start("host-a")
            move = await second.wait_end(migration_id)

    assert "host-a" in waiting.error
    assert move.state is MoveState.SUCCEEDED
    assert not world.was_double


async def test_a_cancel_wanted_before_the_crash_is_heeded_after_it(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        hold(world, "Begin", "before")
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called("Begin")
            await first.moves.cancel(migration_id)
        world.holds_before.pop("Begin").set()
        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.CANCELLED, Location.SOURCE)
    assert world.runs_on() == {"host-a"}


async def test_each_new_coordinator_speaks_in_a_higher_epoch(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as here:
            migration_id = (await here.start()).migration_id
            await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        for _ in range(3):
            async with desk(tmp_path, fleet.addresses) as here:
                await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.complete(Outcome.HANDED_OVER)
        async with desk(tmp_path, fleet.addresses) as here:
            move = await here.wait_end(migration_id)

    assert move.epoch == 5
    assert world.epochs == {"host-a": 5, "host-b": 5}


@pytest.mark.parametrize("host", ["host-a", "host-b"])
async def test_an_old_coordinator_stops_once_a_new_one_has_spoken(tmp_path: Path, host: str):
    world = World(epochs={host: 7})
    async with fake_agents(world, tmp_path) as fleet, desk(tmp_path, fleet.addresses) as here:
        migration_id = (await here.start()).migration_id
        move = await here.wait_error(migration_id, "another coordinator has taken this migration over")

    assert not move.state.is_final
    assert {"Cancel", "Abandon"}.isdisjoint(name for _, name in world.changes)


async def test_an_old_coordinator_tells_how_the_new_one_has_ended_the_move(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet, desk(tmp_path, fleet.addresses) as here:
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.epochs.update({"host-a": 7, "host-b": 7})
        world.complete(Outcome.HANDED_OVER)
        await here.wait_error(migration_id, "another coordinator has taken this migration over")
        world.apply("host-b", inc.FinishRequested())
        world.apply("host-a", out.ConfirmRequested())
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")


async def test_a_step_is_in_the_journal_before_it_is_taken_and_its_result_after_it(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        hold(world, "Prepare", "before")
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called("Prepare")
            seen = steps_of(tmp_path)
        world.holds_before.pop("Prepare").set()
        async with desk(tmp_path, fleet.addresses) as second:
            await second.wait_end(migration_id)

    assert seen == [("begin", 1, "done"), ("prepare", 1, "")]
    assert [(name, epoch) for name, epoch, _ in steps_of(tmp_path)] == [
        ("begin", 1),
        ("prepare", 1),
        *((name, 2) for name in ("begin", "prepare", "perform", "finish", "confirm")),
    ]


async def test_a_migration_whose_host_is_no_longer_in_the_fleet_says_so(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await first.wait_until(migration_id, state=MoveState.TRANSFERRING)
        async with desk(tmp_path, {"host-a": fleet.addresses["host-a"]}) as second:
            stuck = second.board.get(migration_id)
        world.complete(Outcome.HANDED_OVER)
        async with desk(tmp_path, fleet.addresses) as third:
            move = await third.wait_end(migration_id)

    assert stuck.state is MoveState.WAITING
    assert "host 'host-b' is unknown; known: host-a" in stuck.error
    assert move.state is MoveState.SUCCEEDED


async def test_a_journal_of_the_last_version_is_taken_over_and_is_nobody_elses(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await first.wait_end(migration_id)
        with closing(sqlite3.connect(tmp_path / "journal.db")) as database:
            database.execute("alter table migrations drop column started_by")
            database.execute("update schema set version = 2")
            database.commit()
        (tmp_path / "journal.db").chmod(0o644)

        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.started_by) == (MoveState.SUCCEEDED, "")
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
