"""A journal that is lost, or older than what happened since: it moves nobody, and what agents hold is driven to its end."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from common.errors import Unreachable, WrongState
from coordinator.halves import Location, MoveState
from tests.fakes.agents import fake_agents
from tests.fakes.world import AnyPhase, Outcome, World
from tests.unit.coordinator.desk import between, desk
from tests.unit.coordinator.test_crashes import hold

CAUSE = Cause("QEMU ended", "QEMU_ENDED")


def forget(world: World, *hosts: str) -> None:
    """Let agents have forgotten the migration, as those that had many since."""
    for host in hosts:
        del world.phases[host]


def keep_copy(directory: Path) -> None:
    """Copy the journal."""
    copy = directory / "copy"
    copy.mkdir()
    for path in directory.glob("journal.db*"):
        shutil.copy(path, copy)


def put_back(directory: Path) -> None:
    """Replace the journal by its copy."""
    remove_journal(directory)
    for path in (directory / "copy").iterdir():
        shutil.copy(path, directory)


def remove_journal(directory: Path) -> None:
    for path in directory.glob("journal.db*"):
        path.unlink()


async def test_a_coordinator_killed_before_any_agent_heard_of_the_move_moves_nobody(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        hold(world, "Begin", "before")
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called("Begin")
        del world.holds_before["Begin"]
        world.phases.clear()
        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location, move.error_reason) == (MoveState.FAILED, Location.SOURCE, "MIGRATION_FORGOTTEN")
    assert world.changes == [("host-a", "Begin")]


@pytest.mark.parametrize(
    ("there", "state", "location"),
    [
        ("host-a", MoveState.FAILED, Location.SOURCE),
        ("host-b", MoveState.SUCCEEDED, Location.DESTINATION),
        ("", MoveState.FAILED, Location.UNKNOWN),
    ],
)
async def test_a_move_that_both_agents_have_forgotten_is_told_as_it_is_seen_and_not_carried_out_again(
    there: str, state: MoveState, location: Location, tmp_path: Path
):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await first.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.calls.clear()
        forget(world, "host-a", "host-b")
        world.has_vm = {there: True}
        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location) == (state, location)
    assert "neither host-a nor host-b knows the migration" in "; ".join((move.error, *move.warnings))
    assert world.changes == []


async def test_an_older_journal_learns_how_the_move_ended_and_speaks_in_a_higher_epoch(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with fake_agents(world, tmp_path) as fleet:
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await first.wait_until(migration_id, state=MoveState.TRANSFERRING)
        keep_copy(tmp_path)
        for _ in range(3):
            async with desk(tmp_path, fleet.addresses) as here:
                await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.complete(Outcome.HANDED_OVER)
        put_back(tmp_path)
        async with desk(tmp_path, fleet.addresses) as last:
            move = await last.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}
    assert {"Begin", "Prepare", "Perform"}.isdisjoint(name for _, name in world.changes[3:])


@pytest.mark.parametrize(("vm_is_there", "called"), [(True, "Confirm"), (False, "Release")])
async def test_a_source_whose_destination_has_finished_and_forgotten_lets_go(vm_is_there, called, tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet:
        hold(world, "Confirm", "before")
        async with desk(tmp_path, fleet.addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called("Confirm")
        del world.holds_before["Confirm"]
        world.phases["host-a"] = out.HandedOver()
        forget(world, "host-b")
        world.has_vm = {"host-b": True} if vm_is_there else {}
        world.calls.clear()
        async with desk(tmp_path, fleet.addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.SUCCEEDED, Location.DESTINATION)
    assert world.changes == [("host-a", called)]
    assert world.names["host-a"] == "Retired"


SIDES: list[tuple[AnyPhase, AnyPhase | None, MoveState, Location]] = [
    (out.Begun(), None, MoveState.FAILED, Location.SOURCE),
    (out.Begun(), inc.Listening(), MoveState.FAILED, Location.SOURCE),
    (out.Kept(CAUSE), inc.Loading(), MoveState.FAILED, Location.SOURCE),
    (out.Sent(), inc.Loaded(), MoveState.SUCCEEDED, Location.DESTINATION),
    (out.HandedOver(), inc.Running(), MoveState.SUCCEEDED, Location.DESTINATION),
    (out.HandedOver(), inc.Finished(), MoveState.SUCCEEDED, Location.DESTINATION),
    (out.HandedOver(), inc.Lost(CAUSE, is_kept=True), MoveState.FAILED, Location.ENDED_THERE),
    (out.Retired(), inc.Running(), MoveState.SUCCEEDED, Location.DESTINATION),
]


@pytest.mark.parametrize(("source", "destination", "state", "location"), SIDES)
async def test_sides_that_no_journal_knows_are_taken_up_and_end(source, destination, state, location, tmp_path: Path):
    world = World(epochs={"host-a": 4, "host-b": 6}, unattended_s={"host-a": 1, "host-b": 1})
    world.phases["host-a"] = source
    if destination is not None:
        world.phases["host-b"] = destination
    async with between(world, tmp_path) as (here, _):
        move = await here.wait_known_end("m")

    assert (move.state, move.location) == (state, location)
    assert (move.source, move.destination) == ("host-a", "host-b")
    assert all(half.is_final for half in (world.half(host) for host in world.phases))
    assert not world.was_double
    assert {"Begin", "Prepare", "Perform"}.isdisjoint(name for _, name in world.changes)


async def test_a_side_that_was_only_begun_and_names_no_other_host_is_let_go(tmp_path: Path):
    world = World(unattended_s={"host-a": 1}, peers={})
    world.phases["host-a"] = out.Begun()
    async with between(world, tmp_path) as (here, _):
        await world.wait_called("Release")

        assert here.board.find("m") is None
    assert world.names == {"host-a": "Kept"}


@pytest.mark.parametrize(("source", "destination"), [(out.HandedOver(), inc.Running()), (out.Sent(), inc.Loaded())])
async def test_sides_that_somebody_asks_about_are_left_alone(source, destination, tmp_path: Path):
    world = World(unattended_s={"host-a": 0, "host-b": 1})  # who drives a migration follows its source
    world.phases.update({"host-a": source, "host-b": destination})
    async with between(world, tmp_path) as (here, _):
        await world.wait_called("List", count=12)

        assert here.board.find("m") is None
    assert world.changes == []


async def test_a_side_whose_agent_comes_back_later_is_taken_up_then(tmp_path: Path):
    world = World(unattended_s={"host-a": 1, "host-b": 1})
    world.phases.update({"host-a": out.HandedOver(), "host-b": inc.Running()})
    async with fake_agents(world, tmp_path) as fleet:
        for host in fleet.addresses:
            await fleet.stop(host)
        async with desk(tmp_path, fleet.addresses) as here:
            await asyncio.sleep(0)
            for host in fleet.addresses:
                await fleet.start(host)
            move = await here.wait_known_end("m")

    assert move.state is MoveState.SUCCEEDED
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}


async def test_a_migration_that_goes_on_is_not_taken_up_twice(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-b")
        await fleet.start("host-b")
        await world.wait_called("List", count=4)
        world.complete(Outcome.HANDED_OVER)
        move = await here.wait_end(migration_id)

    assert (move.state, move.epoch) == (MoveState.SUCCEEDED, 1)


async def test_a_host_that_is_dead_for_good_is_given_up_and_taken_up_again_when_it_comes_back(tmp_path: Path):
    world = World()
    async with between(world, tmp_path) as (here, fleet):
        world.faults["host-b", "Finish"] = [Unreachable("no answer", reason="PEER_UNREACHABLE")] * 3
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_error(migration_id, "finish is repeated")
        await fleet.stop("host-b")
        given_up = await here.moves.release(migration_id)
        names = world.names
        world.unattended_s["host-b"] = 1
        await fleet.start("host-b")
        await world.wait_called("Finish", count=4)
        move = await here.wait_known_end(migration_id)

    assert f"ferry migration release {migration_id}" in waiting.error
    assert (given_up.state, given_up.error_reason) == (MoveState.FAILED, "GIVEN_UP")
    assert names == {"host-a": "Retired", "host-b": "Running"}
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}
    assert move.state is MoveState.FAILED


async def test_nothing_is_given_up_while_both_hosts_answer(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        with pytest.raises(WrongState) as refused:
            await here.moves.release(migration_id)
        world.complete(Outcome.HANDED_OVER)
        await here.wait_end(migration_id)

    assert refused.value.reason == "HOSTS_ANSWER"


async def test_a_side_that_may_have_the_only_copy_is_not_given_up(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-a")
        world.apply("host-b", inc.QemuLoaded())
        with pytest.raises(WrongState) as refused:
            await here.moves.release(migration_id)

    assert refused.value.reason == "GUEST_IN_DOUBT"
    assert world.names["host-b"] == "Loaded"
