"""When the guest changes hands and somebody does not answer: it is never undone by guess, and the way out is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from common.errors import Unreachable, WrongState
from coordinator.halves import Location, MoveState
from ferry.common.v1 import migration_pb2 as common_pb
from ferry.common.v1.figures_pb2 import Figures
from tests.fakes.world import TOKEN, Outcome, World
from tests.unit.coordinator.desk import between

SILENT = Unreachable("no answer", reason="PEER_UNREACHABLE")
CAUSE = Cause("QEMU ended", "QEMU_ENDED")


async def test_a_resume_that_the_source_cannot_deliver_is_delivered_by_the_coordinator(tmp_path: Path):
    world = World(Outcome.SENT)
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")
    assert ("host-b", "Resume") in world.calls
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}


async def test_figures_that_only_the_destination_has_are_kept_with_those_of_the_source(tmp_path: Path):
    world = World()
    world.progress["host-a"] = common_pb.Progress(pass_count=3, figures=Figures(multifd_bytes=7))
    world.progress["host-b"] = common_pb.Progress(figures=Figures(blocktime_ms=5, vcpu_blocktimes_ms=[5, 6]))
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    kept = common_pb.Progress.FromString(move.progress)
    assert kept == common_pb.Progress(pass_count=3, figures=Figures(multifd_bytes=7, blocktime_ms=5, vcpu_blocktimes_ms=[5, 6]))


async def test_a_source_that_delivers_resume_itself_is_not_helped(tmp_path: Path):
    world = World()
    async with between(world, tmp_path) as (here, _):
        await here.move()

    assert ("host-b", "Resume") not in world.calls


async def test_a_resume_is_repeated_until_the_destination_answers_and_the_way_out_is_told(tmp_path: Path):
    world = World(Outcome.SENT)
    world.faults["host-b", "Resume"] = [SILENT, SILENT]
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_until(migration_id, state=MoveState.WAITING)
        move = await here.wait_end(migration_id)

    assert waiting.location is Location.SWITCHING
    assert "the guest is stopped and given to host-b, which does not run it yet: no answer" in waiting.error
    assert f"ferry migration fence {migration_id} --host host-a" in waiting.error
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")


async def test_a_source_agent_killed_after_it_gave_the_guest_away_does_not_keep_it_from_going_on(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.faults["host-b", "Resume"] = [SILENT] * 3
        world.complete(Outcome.SENT)
        await here.wait_until(migration_id, state=MoveState.WAITING)
        await fleet.stop("host-a")
        waiting = await here.wait_error(migration_id, "confirm is repeated")
        on_the_way = world.runs_on()
        await fleet.start("host-a")
        move = await here.wait_end(migration_id)

    assert on_the_way == {"host-b"}
    assert waiting.location is Location.DESTINATION
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}


async def test_a_source_that_dies_right_after_the_hand_over_does_not_stop_the_finish(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-a")
        world.complete(Outcome.HANDED_OVER)
        await world.wait_called("Finish")
        waiting = await here.wait_error(migration_id, "confirm is repeated")
        await fleet.start("host-a")
        move = await here.wait_end(migration_id)

    assert "the guest runs on host-b" in waiting.error
    assert (move.state, move.location) == (MoveState.SUCCEEDED, Location.DESTINATION)


async def test_a_silent_source_while_the_destination_holds_all_of_the_guest_tells_how_to_fence(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-a")
        world.apply("host-b", inc.QemuLoaded())
        waiting = await here.wait_error(migration_id, "holds the whole guest")
        calls = list(world.changes)
        world.apply("host-b", inc.ResumeRequested())  # an operator fenced it
        await here.wait_error(migration_id, "confirm is repeated")

    assert f"if host-a is dead for good (powered off, not merely silent): ferry migration fence {migration_id} --host host-b" in (
        waiting.error
    )
    assert ("host-b", "Abandon") not in calls
    assert world.names["host-b"] == "Finished"


async def test_a_guest_that_may_be_whole_at_the_destination_is_never_abandoned(tmp_path: Path):
    world = World(Outcome.SOURCE_ENDS_AT_THE_END, error="QEMU ended")
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_until(migration_id, state=MoveState.WAITING)
        await world.wait_called("Get", count=20)

        assert (await here.wait_until(migration_id, state=MoveState.WAITING)).location is Location.NOWHERE
        assert ("host-b", "Abandon") not in world.calls
        assert "QEMU ended: host-b may hold the whole guest" in waiting.error
        assert f"ferry migration fence {migration_id} --host host-b" in waiting.error

        world.apply("host-b", inc.ResumeRequested())  # an operator fenced it
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")
    assert world.names == {"host-a": "Lost", "host-b": "Finished"}


async def test_a_source_that_ends_while_the_destination_loads_ends_the_guest_once_that_is_sure(tmp_path: Path):
    world = World(Outcome.SOURCE_ENDS, error="QEMU ended")
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_until(migration_id, state=MoveState.WAITING)
        abandoned_early = ("host-b", "Abandon") in world.calls
        move = await here.wait_end(migration_id)

    assert "host-b has not said yet whether it has all of the guest" in waiting.error
    assert not abandoned_early
    assert (move.state, move.location) == (MoveState.FAILED, Location.NOWHERE)
    assert (move.error, move.error_reason) == ("QEMU ended", "QEMU_FAILED")
    assert world.names == {"host-a": "Lost", "host-b": "Abandoned"}


async def test_a_destination_that_becomes_whole_after_the_source_has_ended_is_kept_for_an_operator(tmp_path: Path):
    world = World(Outcome.SOURCE_ENDS, error="QEMU ended")
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.WAITING)
        world.apply("host-b", inc.QemuLoaded())
        await here.wait_error(migration_id, f"ferry migration fence {migration_id} --host host-b")

    assert ("host-b", "Abandon") not in world.calls


async def test_a_destination_that_does_not_answer_finish_is_asked_until_it_does(tmp_path: Path):
    world = World()
    world.faults["host-b", "Finish"] = [SILENT] * 3
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_until(migration_id, state=MoveState.WAITING)
        move = await here.wait_end(migration_id)

    assert waiting.location is Location.DESTINATION
    assert "the guest runs on host-b; finish is repeated: no answer" in waiting.error
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")
    assert world.changes.count(("host-b", "Finish")) == 4


@pytest.mark.parametrize(("host", "method"), [("host-b", "Finish"), ("host-a", "Confirm")])
async def test_a_refusal_past_the_point_of_no_return_is_asked_again(tmp_path: Path, host: str, method: str):
    world = World()
    world.faults[host, method] = [WrongState("disk is full", reason="DISK_FULL")] * 2
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        waiting = await here.wait_error(migration_id, "disk is full")
        move = await here.wait_end(migration_id)

    assert waiting.location is Location.DESTINATION
    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")


async def test_a_destination_that_proves_it_never_ran_the_guest_gives_it_back(tmp_path: Path):
    world = World(Outcome.SENT)
    world.faults["host-b", "Resume"] = [SILENT] * 3
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.WAITING)
        world.apply("host-b", inc.QemuExited(CAUSE))
        world.apply("host-a", out.DestinationNeverRan(CAUSE))
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.FAILED, Location.SOURCE, "QEMU ended")
    assert world.names == {"host-a": "Kept", "host-b": "Abandoned"}


async def test_a_guest_that_ended_after_it_was_taken_over_has_ended_there_and_the_source_lets_go_of_it(tmp_path: Path):
    world = World()
    world.holds_before["Finish"] = asyncio.Event()
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await world.wait_called("Finish")
        world.apply("host-b", inc.QemuExited(CAUSE))
        world.holds_before.pop("Finish").set()
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.FAILED, Location.ENDED_THERE, "host-b: QEMU ended")
    assert world.names == {"host-a": "Lost", "host-b": "Lost"}
    assert not world.was_double


async def test_two_owners_after_a_mistaken_fence_are_told_loudly(tmp_path: Path):
    world = World(Outcome.SENT)
    world.faults["host-b", "Resume"] = [SILENT] * 50
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.WAITING)
        world.holds_before["Get"] = asyncio.Event()
        world.apply("host-a", out.Fenced(Cause("fenced by an operator", "FENCED", by_wish=True)))
        world.apply("host-b", inc.ResumeRequested())
        world.holds_before.pop("Get").set()
        move = await here.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.FAILED, Location.UNKNOWN)
    assert move.error_reason == "GUEST_ON_BOTH_HOSTS"
    assert "ferry vm stop web --force --host host-a  or  ferry vm stop web --force --host host-b" in move.error


async def test_the_token_of_the_hand_over_is_shown_by_no_repr(tmp_path: Path):
    world = World(Outcome.SENT)
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await here.wait_end(migration_id)
        half = await here.moves._fleet.get("host-a").find(migration_id)

    assert half is not None
    assert half.resume_token == TOKEN
    assert repr(TOKEN)[2:-1] not in repr(half)
