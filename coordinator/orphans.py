"""Sides of migrations that agents hold and the journal does not know: taken up, and driven to their end by the rules of ownership.

A journal that was lost, or put back from an older copy, leaves them behind. The coordinator asks each agent when it starts and
whenever an agent comes back; what it takes up so it follows or undoes, and never begins.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from common.clock import Clock
from common.errors import FerryError
from coordinator.agents import Agent
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.halves import Half, Move
from coordinator.moves import Moves
from coordinator.workflows.moving import Origin

LOOK_INTERVAL_S: Final = 5.0
_log = structlog.get_logger()


class Orphans:
    """Looks for sides without a coordinator on every host of the fleet."""

    def __init__(self, fleet: Fleet, board: Board, moves: Moves, clock: Clock, *, interval_s: float = LOOK_INTERVAL_S) -> None:
        self._fleet = fleet
        self._board = board
        self._moves = moves
        self._clock = clock
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            for agent in self._fleet.all():
                group.create_task(self._watch(agent))

    async def _watch(self, agent: Agent) -> None:
        was_away = True
        while True:
            try:
                halves = await agent.unfinished()
                if was_away:
                    for half in halves:
                        await self._take_up(agent, half.migration_id)
                was_away = False
            except FerryError as error:
                was_away = True
                _log.debug("agent does not answer", host=agent.host, error=error.text)
            await asyncio.sleep(self._interval_s)

    async def _take_up(self, agent: Agent, migration_id: str) -> None:
        if self._board.is_under_way(migration_id):
            return
        half = await agent.find(migration_id)
        if half is None or half.is_final:
            return
        known = self._board.find(migration_id)
        move = await self._reconstruct(agent, half) if known is None else replace(known, is_tidy=False)
        if move is None or self._board.is_under_way(migration_id):
            return
        _log.warning("side without a coordinator taken up", migration=migration_id, vm=half.vm_name, host=agent.host)
        self._moves.take_up(move, Origin.JOURNAL if known is not None else Origin.AGENTS)

    async def _reconstruct(self, agent: Agent, half: Half) -> Move | None:
        """Make the migration again out of what the agents say of it; None while nobody knows the other host."""
        peer = await self._find_peer(agent, half)
        if not peer:
            _log.warning("other host unknown", migration=half.migration_id, vm=half.vm_name, host=agent.host, peer=half.peer)
            return None
        return Move(
            migration_id=half.migration_id,
            vm_name=half.vm_name,
            vm_uuid=half.vm_uuid,
            source=agent.host if half.is_source else peer,
            destination=peer if half.is_source else agent.host,
            options=half.options,
            traceparent="",
            epoch=half.epoch + 1,
            created_at_s=half.began_at_s or self._clock.wall_s(),
            step="taken up",
        )

    async def _find_peer(self, agent: Agent, half: Half) -> str:
        """Name the host of the other side: who holds it, or else who this side says it is."""
        for other in self._fleet.all():
            if other is agent:
                continue
            try:
                found = await other.find(half.migration_id)
            except FerryError:
                continue
            if found is not None and found.is_source is not half.is_source:
                return other.host
        return half.peer if any(one.host == half.peer for one in self._fleet.all()) else ""
