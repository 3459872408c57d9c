"""A destination that is undone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from opentelemetry import context as otel_context

from agent.migration import incoming as inc
from agent.migration.destination import DestinationSession
from agent.migration.disk_making import create_empty, plan_image
from agent.migration.machine import Cause
from agent.migration.order import Options, Role
from agent.migration.record import Facts, Record
from agent.store import Store

if TYPE_CHECKING:
    from agent.migration.surroundings import Surroundings


class WatchedSession(DestinationSession):
    """One that looks for a file when it is told that it was undone."""

    path = Path()
    was_there: bool | None = None

    def observe(self, event: inc.Event, **changes: object) -> None:
        if isinstance(event, inc.Undone):
            self.was_there = self.path.exists()
        super().observe(event, **changes)


async def test_images_are_gone_when_it_is_told_that_all_was_undone(tmp_path: Path):
    """Else the next attempt, which may come at once, finds them in its way."""
    made = await asyncio.to_thread(create_empty, plan_image(str(tmp_path / "copy.qcow2")), "disk vda")
    await asyncio.to_thread(Path(made.part_path).rename, made.path)
    facts = Facts("m", Role.DESTINATION, "uuid", "web", Options(), 1, 0.0, made_images=(made,))
    around = SimpleNamespace(store=Store(tmp_path / "state", run_dir=tmp_path / "run"), key_directory=lambda _: tmp_path / "keys")
    record = Record[inc.Phase](facts, inc.Undoing(Cause("no", "NO")))
    session = WatchedSession(record, around=cast("Surroundings", around), vm=None, lock=None, parent=otel_context.get_current())
    session.path = Path(made.path)

    await session.run(after_restart=True)

    assert session.was_there is False
