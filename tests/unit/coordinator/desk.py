"""A coordinator without its server, on a journal file, between two fake agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from common.clock import SystemClock
from common.tasks import OwnedTasks
from coordinator.board import Board
from coordinator.config import CoordinatorConfig, HostConfig
from coordinator.fleet import Fleet
from coordinator.halves import Move
from coordinator.journal import Journal
from coordinator.moves import Moves, Order
from coordinator.traces import Traces

DEADLINE_S = 20.0


@dataclass
class Desk:
    """The parts that a test works with."""

    moves: Moves
    board: Board

    async def start(self, destination: str = "host-b", source: str = "") -> Move:
        return await self.moves.start(Order("", "web", source, destination, b"", wants_tunnel=False))

    async def wait_end(self, migration_id: str) -> Move:
        """Return the migration once nothing is left to do."""
        async with asyncio.timeout(DEADLINE_S):
            async for _ in self.board.follow(migration_id):
                pass
            while migration_id in self.board._moves:  # noqa: ASYNC110 - it leaves the board a moment after its end
                await asyncio.sleep(0)
        return self.board.get(migration_id)

    async def wait_until(self, migration_id: str, **wanted: object) -> Move:
        """Return the migration once its fields are as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            async for move in self.board.follow(migration_id):
                if all(getattr(move, name) == value for name, value in wanted.items()):
                    return move
        raise AssertionError(f"{migration_id} ended without {wanted}")


@asynccontextmanager
async def desk(directory: Path, addresses: dict[str, str]) -> AsyncIterator[Desk]:
    """Open a coordinator; leaving it is as sudden as a kill."""
    hosts = {name: HostConfig(agent=address) for name, address in addresses.items()}
    async with AsyncExitStack() as stack:
        journal = Journal(directory / "journal.db", SystemClock())
        stack.callback(journal.close)
        traces = Traces(directory / "traces.db", lambda _trace_id: b"")
        stack.callback(traces.close)
        fleet = await stack.enter_async_context(Fleet(CoordinatorConfig(insecure=True, hosts=hosts)))
        tasks = await stack.enter_async_context(OwnedTasks())
        board = Board(journal)
        moves = Moves(fleet, board, traces, SystemClock(), tasks)
        moves.recover()
        yield Desk(moves, board)
