"""A host sends and receives a bounded number of migrations at a time; the rest is queued, in order, and says so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from coordinator.halves import Location, MoveState
from coordinator.slots import Slots
from tests.fakes.agents import fake_agents
from tests.fakes.world import World
from tests.unit.coordinator.desk import desk


async def queue(slots: Slots, hosts: tuple[str, str], log: list[str], name: str, leave: asyncio.Event) -> None:
    async with slots.hold(*hosts, lambda text: log.append(f"{name}: {text}")):
        log.append(f"{name} goes")
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_finds_both_hosts_free_goes_at_once_and_the_rest_in_its_order():
    slots = Slots(2, 1)
    log: list[str] = []
    leave = {name: asyncio.Event() for name in "pqrs"}
    async with asyncio.TaskGroup() as group:
        for name, hosts in (("p", ("a", "b")), ("q", ("a", "b")), ("r", ("c", "b")), ("s", ("a", "c"))):
            group.create_task(queue(slots, hosts, log, name, leave[name]))
            await settle()

        assert log == [
            "p goes",
            "q: queued, number 1: b is receiving 1 VM, at most 1 at a time",
            "r: queued, number 2: b is receiving 1 VM, at most 1 at a time",
            "s goes",
        ]
        leave["p"].set()
        await settle()
        assert log[4:] == ["q goes"]
        for event in leave.values():
            event.set()
    assert log[5:] == ["r goes"]


async def test_who_gives_up_waiting_is_not_waited_for():
    slots, leave = Slots(1, 1), asyncio.Event()
    log: list[str] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(queue(slots, ("a", "b"), log, "first", leave))
        await settle()
        waiting = group.create_task(queue(slots, ("a", "b"), log, "second", leave))
        await settle()
        waiting.cancel()
        group.create_task(queue(slots, ("a", "b"), log, "third", leave))
        await settle()
        assert "third: queued, number 1: a is sending 1 VM, at most 1 at a time" in log
        leave.set()
    assert [line for line in log if line.endswith("goes")] == ["first goes", "third goes"]


@asynccontextmanager
async def one_slot_taken(world: World, directory: Path):
    slots = Slots(1, 1)
    async with (
        fake_agents(world, directory) as fleet,
        desk(directory, fleet.addresses, slots=slots) as here,
        AsyncExitStack() as other,
    ):
        await other.enter_async_context(slots.hold("host-a", "host-b", lambda _text: None))
        yield here, other


async def test_a_migration_that_has_to_wait_says_so_and_goes_when_its_turn_comes(tmp_path: Path):
    world = World()
    async with one_slot_taken(world, tmp_path) as (here, other):
        move = await here.start()
        move = await here.wait_error(move.migration_id, "host-a is sending 1 VM")

        assert (move.state, move.error_reason, world.changes) == (MoveState.PREPARING, "QUEUED", [])
        await other.aclose()
        move = await here.wait_end(move.migration_id)

    assert (move.state, move.error, move.error_reason) == (MoveState.SUCCEEDED, "", "")


async def test_a_queued_migration_is_cancelled_without_an_agent_being_asked_for_anything(tmp_path: Path):
    world = World()
    async with one_slot_taken(world, tmp_path) as (here, _):
        move = await here.start()
        await here.wait_error(move.migration_id, "queued")

        await here.moves.cancel(move.migration_id)
        move = await here.wait_end(move.migration_id)

    assert (move.state, move.location) == (MoveState.CANCELLED, Location.SOURCE)
    assert world.changes == []


async def test_a_migration_waits_until_nothing_is_left_to_undo_of_the_one_before(tmp_path: Path):
    world = World()
    async with fake_agents(world, tmp_path) as fleet, desk(tmp_path, fleet.addresses) as here:
        first = await here.wait_end((await here.start()).migration_id)
        here.board.put(replace(first, migration_id="earlier", state=MoveState.CANCELLED, is_tidy=False, request_id="r"))
        world.phases.clear()
        world.has_vm = {"host-a": True}
        before = len(world.changes)
        move = await here.start()
        await settle()
        assert len(world.changes) == before

        here.board.change("earlier", is_tidy=True)
        move = await here.wait_end(move.migration_id)

    assert move.state is MoveState.SUCCEEDED
