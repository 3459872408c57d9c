"""The workflow between two agents that answer, refuse, lose answers and come back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Unreachable, WrongState
from coordinator.halves import Location, MoveState
from tests.fakes.world import Lost, Outcome, World
from tests.unit.coordinator.desk import FAST, between

SILENT = Unreachable("no answer", reason="PEER_UNREACHABLE")


async def test_a_move_without_trouble_takes_the_five_steps_in_order(tmp_path: Path):
    world = World()
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")
    assert world.changes == [
        ("host-a", "Begin"),
        ("host-b", "Prepare"),
        ("host-a", "Perform"),
        ("host-b", "Finish"),
        ("host-a", "Confirm"),
    ]
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}
    assert (move.is_tidy, move.step, move.vm_uuid) == (True, "", "0f1e")
    assert move.ended_at_s is not None
    assert move.ended_at_s >= move.created_at_s


async def test_what_the_agents_need_of_each_other_is_passed_on(tmp_path: Path):
    world = World()
    async with between(world, tmp_path) as (here, fleet):
        await here.move()

    by_kind = {type(request).__name__: request for request in world.requests}
    prepare, perform = by_kind["PrepareMigrationRequest"], by_kind["PerformMigrationRequest"]
    assert (prepare.definition, prepare.resume_token_sha256) == (b"{}", b"s" * 32)  # type: ignore[attr-defined]
    assert perform.endpoint.uri == "tcp:127.0.0.1:1"  # type: ignore[attr-defined]
    assert perform.destination_agent_address == fleet.addresses["host-b"]  # type: ignore[attr-defined]
    assert perform.destination_host == "host-b"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("host", "method"), [("host-a", "Begin"), ("host-b", "Prepare"), ("host-a", "Perform")])
async def test_a_refusal_leaves_the_guest_at_the_source_and_tells_the_reason(tmp_path: Path, host: str, method: str):
    world = World()
    world.faults[host, method] = [WrongState("no room here", reason="NOT_ENOUGH_MEMORY")]
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert (move.error, move.error_reason) == (f"{host}: no room here", "NOT_ENOUGH_MEMORY")
    assert world.runs_on() == {"host-a"}
    assert world.names.get("host-a") in {None, "Kept"}
    assert world.names.get("host-b") in {None, "Abandoned"}


async def test_a_refusal_to_begin_asks_nothing_of_the_destination(tmp_path: Path):
    world = World()
    world.faults["host-a", "Begin"] = [WrongState("VM is locked", reason="VM_BUSY")]
    async with between(world, tmp_path) as (here, _):
        await here.move()

    assert {host for host, _ in world.changes} == {"host-a"}


async def test_a_transfer_that_fails_undoes_the_destination(tmp_path: Path):
    world = World(Outcome.GAVE_UP)
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert (move.error, move.error_reason) == ("the link broke", "QEMU_FAILED")
    assert world.names == {"host-a": "Kept", "host-b": "Abandoned"}


@pytest.mark.parametrize(
    ("host", "method"),
    [("host-a", "Begin"), ("host-b", "Prepare"), ("host-a", "Perform"), ("host-b", "Finish"), ("host-a", "Confirm")],
)
@pytest.mark.parametrize("fault", [Lost(), SILENT], ids=["answer-lost", "never-arrived"])
async def test_a_call_that_may_have_happened_is_repeated(tmp_path: Path, host: str, method: str, fault: Lost | Unreachable):
    world = World()
    world.faults[host, method] = [fault]
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}
    assert not world.was_double


@pytest.mark.parametrize(("host", "method"), [("host-a", "Begin"), ("host-b", "Prepare")])
async def test_an_agent_that_stays_silent_before_the_transfer_fails_the_move(tmp_path: Path, host: str, method: str):
    world = World()
    world.faults[host, method] = [SILENT] * FAST.repeat_count
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert (move.error, move.error_reason) == (f"{host}: no answer", "PEER_UNREACHABLE")


async def test_a_repeat_that_finds_an_ended_half_tells_why_it_ended(tmp_path: Path):
    world = World()
    world.faults["host-b", "Prepare"] = [SILENT, WrongState("has ended", reason="MIGRATION_ENDED")]
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.error, move.error_reason) == ("host-b: no answer", "PEER_UNREACHABLE")


async def test_a_source_agent_restarted_in_mid_transfer_is_followed_again(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        await fleet.stop("host-a")
        waiting = await here.wait_until(migration_id, state=MoveState.WAITING)
        world.complete(Outcome.HANDED_OVER)
        await fleet.start("host-a")
        move = await here.wait_end(migration_id)

    assert "host-a" in waiting.error
    assert "the move goes on by itself" in waiting.error
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")


async def test_a_source_agent_restarted_before_it_heard_perform_is_told_again(tmp_path: Path):
    world = World()
    world.holds_before["Perform"] = asyncio.Event()
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await world.wait_called("Perform")
        await fleet.stop("host-a")
        del world.holds_before["Perform"]
        await fleet.start("host-a")
        move = await here.wait_end(migration_id)

    assert move.state is MoveState.SUCCEEDED


async def test_an_agent_restarted_while_it_prepares_fails_the_move_and_is_undone(tmp_path: Path):
    world = World()
    world.holds_after["Prepare"] = asyncio.Event()
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await world.wait_called("Prepare")
        await fleet.stop("host-b")
        del world.holds_after["Prepare"]
        await fleet.start("host-b")
        move = await here.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert world.names == {"host-a": "Kept", "host-b": "Abandoned"}


async def test_a_mistake_of_the_source_s_agent_in_mid_transfer_ends_the_move_where_the_guest_is(tmp_path: Path):
    world = World(Outcome.SENT)
    world.faults["host-a", "Perform"] = [WrongState("strange", reason="STRANGE")]
    async with between(world, tmp_path) as (here, _):
        move = await here.move()

    assert (move.state, move.error, world.runs_on()) == (MoveState.FAILED, "host-a: strange", {"host-a"})


async def test_a_cancel_in_the_undo_that_loses_the_race_finishes_the_move(tmp_path: Path):
    world = World(Outcome.GOES_ON)
    async with between(world, tmp_path) as (here, fleet):
        migration_id = (await here.start()).migration_id
        await here.wait_until(migration_id, state=MoveState.TRANSFERRING)
        world.holds_before["Cancel"] = asyncio.Event()
        world.faults["host-a", "Watch"] = [WrongState("strange", reason="STRANGE")]
        world.faults["host-a", "Perform"] = [WrongState("strange", reason="STRANGE")]
        await fleet.stop("host-a")
        await fleet.start("host-a")
        await world.wait_called("Cancel")
        world.complete(Outcome.HANDED_OVER)
        world.holds_before.pop("Cancel").set()
        move = await here.wait_end(migration_id)

    assert (move.state, move.location, move.error) == (MoveState.SUCCEEDED, Location.DESTINATION, "")
    assert world.names == {"host-a": "Retired", "host-b": "Finished"}


@pytest.mark.parametrize("method", ["Begin", "Prepare"])
async def test_a_cancel_does_not_wait_for_an_agent_that_takes_long(tmp_path: Path, method: str):
    world = World()
    world.holds_before[method] = asyncio.Event()
    async with between(world, tmp_path) as (here, _):
        migration_id = (await here.start()).migration_id
        await world.wait_called(method)
        await here.moves.cancel(migration_id)
        move = await here.wait_until(migration_id, state=MoveState.CANCELLED)
        world.holds_before.pop(method).set()
        await here.wait_end(migration_id)

    assert (move.location, move.error_reason) == (Location.SOURCE, "CANCELLED")
    assert world.runs_on() == {"host-a"}


async def test_a_cancel_tells_its_end_although_the_destination_does_not_answer_any_more(tmp_path: Path):
    world = World()
    world.holds_before["Prepare"] = asyncio.Event()
    world.holds_before["Abandon"] = asyncio.Event()
    async with between(world, tmp_path, pace=replace(FAST, undo_patience_s=0.01)) as (here, _):
        migration_id = (await here.start()).migration_id
        await world.wait_called("Prepare")
        await here.moves.cancel(migration_id)
        move = await here.wait_until(migration_id, state=MoveState.CANCELLED)
        world.holds_before.pop("Prepare").set()
        world.holds_before.pop("Abandon").set()
        await here.wait_end(migration_id)

    assert (move.location, move.error_reason) == (Location.SOURCE, "CANCELLED")
    assert world.runs_on() == {"host-a"}


async def test_a_mistake_of_our_own_is_told_and_leaves_the_guest_where_it_is(tmp_path: Path):
    world = World()
    world.faults["host-a", "Begin"] = [SILENT]
    mistaken = replace(FAST, retry_first_s=None)  # type: ignore[arg-type]  # that is the mistake
    async with between(world, tmp_path, pace=mistaken) as (here, _):
        migration_id = (await here.start()).migration_id
        move = await here.wait_until(migration_id, state=MoveState.WAITING)

    assert move.error_reason == "BUG"
    assert "coordinator's log has more" in move.error
    assert world.runs_on() == {"host-a"}
