"""The workflow between two agents that answer, refuse, lose answers and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from common.errors import Busy, FerryError, InvalidRequest, NotFound, Unreachable, WrongState
from coordinator.halves import Location, MoveState
from tests.fakes.agents import KEY, TOKEN, Lost, World, fake_agents
from tests.unit.coordinator.desk import desk

STEPS = ("Begin", "Prepare", "Perform", "Finish", "Confirm")


def changing(world: World) -> list[tuple[str, str]]:
    """The calls that change something."""
    return [call for call in world.calls if call[1] not in {"Get", "GetHost", "GetVm", "Watch"}]


async def test_a_move_without_trouble_takes_the_five_steps_in_order(tmp_path: Path):
    world = World()
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert (move.state, move.location) == (MoveState.SUCCEEDED, Location.DESTINATION)
    assert changing(world) == [
        ("host-a", "Begin"),
        ("host-b", "Prepare"),
        ("host-a", "Perform"),
        ("host-b", "Finish"),
        ("host-a", "Confirm"),
    ]
    assert world.runs_on() == {"host-b"}


async def test_no_secret_is_ever_written_down(tmp_path: Path):
    world = World()
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        await here.wait_end((await here.start()).migration_id)

    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs any more
    assert KEY.encode() not in written
    assert TOKEN not in written
    assert TOKEN.hex().encode() not in written


@pytest.mark.parametrize(("host", "method"), [("host-a", "Begin"), ("host-b", "Prepare"), ("host-a", "Perform")])
async def test_a_refusal_leaves_the_guest_at_the_source_and_tells_the_reason(tmp_path: Path, host: str, method: str):
    world = World()
    world.faults[host, method] = [WrongState("no room here", reason="NOT_ENOUGH_MEMORY")]
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert (move.state, move.location) == (MoveState.FAILED, Location.SOURCE)
    assert (move.error, move.error_reason) == ("no room here", "NOT_ENOUGH_MEMORY")
    assert world.runs_on() == {"host-a"}
    assert world.phases.get("host-b") in {None, "Abandoned"}


async def test_a_transfer_that_fails_undoes_the_destination(tmp_path: Path):
    world = World(outcome="Kept", error="the link broke")
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert (move.state, move.location, move.error) == (MoveState.FAILED, Location.SOURCE, "the link broke")
    assert world.phases == {"host-a": "Kept", "host-b": "Abandoned"}


@pytest.mark.parametrize(
    ("host", "method"),
    [("host-a", "Begin"), ("host-b", "Prepare"), ("host-a", "Perform"), ("host-b", "Finish"), ("host-a", "Confirm")],
)
async def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path, host: str, method: str):
    world = World()
    world.faults[host, method] = [Lost()]
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert move.state is MoveState.SUCCEEDED
    assert world.runs_on() == {"host-b"}


async def test_a_resume_that_the_source_cannot_deliver_is_delivered_by_the_coordinator(tmp_path: Path):
    world = World(outcome="Sent")
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert move.state is MoveState.SUCCEEDED
    assert ("host-b", "Resume") in world.calls
    assert world.phases == {"host-a": "Retired", "host-b": "Finished"}


async def test_a_guest_that_may_be_whole_at_the_destination_waits_for_an_operator(tmp_path: Path):
    world = World(outcome="Lost", error="QEMU ended")
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        started = await here.start()
        move = await here.wait_until(started.migration_id, state=MoveState.WAITING)

    assert f"ferry migration fence {started.migration_id} --host host-b" in move.error
    assert ("host-b", "Abandon") not in world.calls


async def test_a_destination_that_does_not_answer_finish_is_asked_until_it_does(tmp_path: Path):
    world = World()
    world.faults["host-b", "Finish"] = [Unreachable("no answer", reason="PEER_UNREACHABLE")] * 2
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        started = await here.start()
        waiting = await here.wait_until(started.migration_id, state=MoveState.WAITING)
        move = await here.wait_end(started.migration_id)

    assert "the guest runs on host-b; finish is repeated" in waiting.error
    assert (move.state, move.error) == (MoveState.SUCCEEDED, "")


@pytest.mark.parametrize("method", STEPS)
async def test_a_coordinator_killed_at_any_step_finishes_the_move_when_it_starts_again(tmp_path: Path, method: str):
    world = World()
    world.holds[method] = asyncio.Event()
    async with fake_agents(world) as addresses:
        async with desk(tmp_path, addresses) as first:
            migration_id = (await first.start()).migration_id
            await world.wait_called(method)
        world.holds.pop(method).set()

        async with desk(tmp_path, addresses) as second:
            move = await second.wait_end(migration_id)

    assert (move.state, move.location) == (MoveState.SUCCEEDED, Location.DESTINATION)
    assert move.epoch == 2
    assert world.runs_on() == {"host-b"}


async def test_an_old_coordinator_is_refused_once_a_new_one_has_spoken(tmp_path: Path):
    world = World(epochs=[7])
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

    assert (move.state, move.error_reason) == (MoveState.FAILED, "EPOCH_STALE")
    assert world.phases == {}


@pytest.mark.parametrize("method", ["Begin", "Prepare"])
async def test_a_cancel_before_the_transfer_keeps_the_guest(tmp_path: Path, method: str):
    world = World()
    world.holds[method] = asyncio.Event()
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        started = await here.start()
        await world.wait_called(method)
        await here.moves.cancel(started.migration_id)
        world.holds.pop(method).set()
        move = await here.wait_end(started.migration_id)

    assert (move.state, move.location) == (MoveState.CANCELLED, Location.SOURCE)
    assert world.runs_on() == {"host-a"}


async def test_a_cancel_after_the_end_is_refused_with_where_the_guest_is(tmp_path: Path):
    async with fake_agents(World()) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

        with pytest.raises(WrongState, match="the guest is at the destination"):
            await here.moves.cancel(move.migration_id)


@pytest.mark.parametrize(
    ("world", "source", "destination", "error", "told"),
    [
        (World(has_vm={}), "", "host-b", NotFound, "VM web is on none of the hosts"),
        (World(has_vm={"host-a": True, "host-b": True}), "", "host-b", InvalidRequest, "host-a, host-b"),
        (World(), "", "host-x", NotFound, "host 'host-x' is unknown; known: host-a, host-b"),
        (World(), "", "host-a", InvalidRequest, "source and destination are one host"),
        (World(has_vm={"host-a": False}), "", "host-b", WrongState, "only a running VM can be moved"),
        (World(), "host-b", "host-a", NotFound, "VM web is not on host-b"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_changes(  # noqa: PLR0913, PLR0917 - a row of the table
    tmp_path: Path, world: World, source: str, destination: str, error: type[FerryError], told: str
):
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        with pytest.raises(error, match=told):
            await here.start(destination, source)

        assert here.board.newest("", 10) == []
    assert changing(world) == []


async def test_a_second_move_of_the_same_vm_is_refused_with_the_first_one_s_id(tmp_path: Path):
    world = World()
    world.holds["Prepare"] = asyncio.Event()
    async with fake_agents(world) as addresses, desk(tmp_path, addresses) as here:
        first = await here.start()

        with pytest.raises(Busy, match=first.migration_id):
            await here.start()


async def test_a_migration_is_found_by_the_beginning_of_its_id(tmp_path: Path):
    async with fake_agents(World()) as addresses, desk(tmp_path, addresses) as here:
        move = await here.wait_end((await here.start()).migration_id)

        assert here.board.get(move.migration_id[:6]) == move
        with pytest.raises(NotFound):
            here.board.get("zzz")
        with pytest.raises(NotFound):
            here.board.get("%")
