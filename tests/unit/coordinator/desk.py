"""A coordinator without its server, on a journal file, between two fake agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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
from coordinator.orphans import Orphans, Patience
from coordinator.slots import Slots
from coordinator.traces import Traces
from coordinator.workflows.pace import Pace
from tests.fakes.agents import FakeFleet, fake_agents
from tests.fakes.world import World

DEADLINE_S = 10.0
FAST = Pace(
    retry_first_s=0.002, retry_last_s=0.02, ask_again_s=0.001, resume_patience_s=0.02, loading_patience_s=0.05
)  # as the real one, but for a test
LOOK_INTERVAL_S = 0.02
EAGER = Patience(LOOK_INTERVAL_S, unattended_s=1.0, preparing_s=1.0)  # fake agents say how long nobody has asked
NO_TUNNEL = False


@dataclass
class Desk:
    """The parts that a test works with."""

    moves: Moves
    board: Board
    journal: Journal
    traces: Traces

    async def start(self, destination: str = "host-b", source: str = "", *, request_id: str = "", vm: str = "web") -> Move:
        """Start a migration of the one VM there is."""
        return await self.moves.start(Order(request_id, vm, source, destination, b"", wants_tunnel=NO_TUNNEL))

    async def move(self) -> Move:
        """Start a migration and return how it ended."""
        return await self.wait_end((await self.start()).migration_id)

    async def wait_end(self, migration_id: str) -> Move:
        """Return the migration once nothing is left to do."""
        return await self._wait(migration_id, lambda move: move.is_tidy)

    async def wait_known_end(self, migration_id: str) -> Move:
        """Return a migration that the coordinator may not know yet, once nothing is left to do."""
        async with asyncio.timeout(DEADLINE_S):
            while (move := self.board.find(migration_id)) is None or not move.is_tidy:  # noqa: ASYNC110 -- nothing tells of it
                await asyncio.sleep(LOOK_INTERVAL_S)
        return move

    async def wait_until(self, migration_id: str, **wanted: object) -> Move:
        """Return the migration once its fields are as wanted."""
        return await self._wait(migration_id, lambda move: all(getattr(move, name) == value for name, value in wanted.items()))

    async def wait_error(self, migration_id: str, words: str) -> Move:
        """Return the migration once its error has these words."""
        return await self._wait(migration_id, lambda move: words in move.error)

    async def _wait(self, migration_id: str, is_wanted: Callable[[Move], bool]) -> Move:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                changed = self.board._changed.setdefault(migration_id, asyncio.Event())
                move = self.board.get(migration_id)
                if is_wanted(move):
                    return move
                await changed.wait()


@asynccontextmanager
async def desk(directory: Path, addresses: dict[str, str], *, pace: Pace = FAST, slots: Slots | None = None) -> AsyncIterator[Desk]:
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
        moves = Moves(fleet, board, traces, SystemClock(), tasks, pace, slots=slots or Slots(4, 4))
        moves.recover()
        tasks.start(Orphans(fleet, board, moves, SystemClock(), EAGER).run())
        yield Desk(moves, board, journal, traces)


@asynccontextmanager
async def between(world: World, directory: Path, *, pace: Pace = FAST) -> AsyncIterator[tuple[Desk, FakeFleet]]:
    """Open a coordinator and both agents."""
    async with fake_agents(world, directory) as fleet, desk(directory, fleet.addresses, pace=pace) as here:
        yield here, fleet
