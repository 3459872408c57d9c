"""A journal whose file system is full: the coordinator stays up, migrations go on, and it is written when there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from common.storage import NO_SPACE, StorageFailed
from coordinator.halves import MoveState
from coordinator.journal import Journal
from tests.fakes.world import World
from tests.unit.coordinator.desk import between


def fill(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the journal refuse to be written to."""

    def refuse(*_: object) -> None:
        raise StorageFailed("journal.db: no space left", reason=NO_SPACE)

    monkeypatch.setattr(journal, "save", refuse)
    monkeypatch.setattr(journal, "_intend", refuse)


async def test_a_migration_that_cannot_be_put_on_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world = World()
    async with between(world, tmp_path) as (desk, _):
        fill(desk.journal, monkeypatch)

        with pytest.raises(StorageFailed):
            await desk.start()

        assert desk.board.newest("", 10) == []
    assert world.changes == []


async def test_a_beginning_that_cannot_be_put_on_record_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    world = World()
    world.holds_after["Prepare"] = asyncio.Event()
    async with between(world, tmp_path) as (desk, _):
        move = await desk.start()
        await world.wait_called("Prepare")
        fill(desk.journal, monkeypatch)
        world.holds_after.pop("Prepare").set()

        ended = await desk.wait_end(move.migration_id)

    assert (ended.state, ended.error_reason) == (MoveState.FAILED, NO_SPACE)
    assert "Perform" not in [method for _, method in world.calls]
    assert world.runs_on() == {"host-a"}


async def test_a_migration_that_is_performed_ends_and_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = World()
    world.holds_before["Finish"] = asyncio.Event()
    async with between(world, tmp_path) as (desk, _):
        move = await desk.start()
        await world.wait_called("Finish")
        with monkeypatch.context() as full:
            fill(desk.journal, full)
            world.holds_before.pop("Finish").set()
            ended = await desk.wait_end(move.migration_id)
            (on_record,) = desk.journal.find(move.migration_id)
            assert (ended.state, on_record.state) == (MoveState.SUCCEEDED, MoveState.FINISHING)

        desk.board.write_all()
        (on_record,) = desk.journal.find(move.migration_id)

    assert (on_record.state, on_record.is_tidy) == (MoveState.SUCCEEDED, True)
