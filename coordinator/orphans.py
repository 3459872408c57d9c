"""Sides of migrations that agents hold and nobody drives: taken up, and brought to their end by the rules of ownership.

A journal that was lost, or put back from an older copy, leaves them behind. The coordinator asks its agents for them now and then;
what it takes up so it follows or undoes, and never begins. A side that another client or coordinator asks about is theirs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from common.clock import Clock
from common.errors import FerryError
from coordinator.agents import Agent
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.halves import Half, HalfState, Move
from coordinator.moves import Moves
from coordinator.workflows.moving import Origin

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How often agents are asked, and how long a side is left to others.

    Attributes:
        interval_s: between two questions.
        unattended_s: without a question from anybody.
        preparing_s: the same for a side that was only begun: whoever began it may wait for the other host.
    """

    interval_s: float = 2.0
    unattended_s: float = 3.0
    preparing_s: float = 20.0


class Orphans:
    """Looks for sides that nobody drives on every host of the fleet."""

    def __init__(self, fleet: Fleet, board: Board, moves: Moves, clock: Clock, patience: Patience | None = None) -> None:
        self._fleet = fleet
        self._board = board
        self._moves = moves
        self._clock = clock
        self._patience = patience or Patience()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            for agent in self._fleet.all():
                group.create_task(self._watch(agent))

    async def _watch(self, agent: Agent) -> None:
        while True:
            try:
                for half in await agent.unfinished():
                    await self._look_at(agent, half)
            except FerryError as error:
                _log.debug("agent does not answer", host=agent.host, error=error.text)
            await asyncio.sleep(self._patience.interval_s)

    async def _look_at(self, agent: Agent, half: Half) -> None:
        if self._board.is_under_way(half.migration_id) or not self._is_unattended(half):
            return
        other = await self._find_other(agent, half)
        source = other.half if other is not None and not half.is_source else None
        if source is not None and not source.is_final and not self._is_unattended(source):
            return  # who drives a migration follows its source
        known = self._board.find(half.migration_id)
        if known is None and other is None:
            await self._let_go(agent, half)
            return
        if self._board.is_under_way(half.migration_id):
            return
        move = replace(known, is_tidy=False) if known is not None else self._reconstruct(agent, half, other)
        _log.warning("side that nobody drives taken up", migration=half.migration_id, vm=half.vm_name, host=agent.host)
        self._moves.take_up(move, Origin.AGENTS if known is None else Origin.JOURNAL)

    async def _let_go(self, agent: Agent, half: Half) -> None:
        """End a side of which nobody knows the other one: what was only begun; the rest is an operator's, whom doctor tells."""
        _log.warning("other host unknown", migration=half.migration_id, vm=half.vm_name, host=agent.host, peer=half.peer)
        if half.state is HalfState.PREPARING:
            await agent.release(half.migration_id)

    def _is_unattended(self, half: Half) -> bool:
        is_preparing = half.state is HalfState.PREPARING
        return half.unattended_s >= (self._patience.preparing_s if is_preparing else self._patience.unattended_s)

    def _reconstruct(self, agent: Agent, half: Half, other: _Other | None) -> Move:
        """Make the migration again out of what the agents say of it."""
        peer = "" if other is None else other.host
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

    async def _find_other(self, agent: Agent, half: Half) -> _Other | None:
        """Find the host of the other side: who holds it, or else who this side says it is; asking is no attention."""
        for other in self._fleet.all():
            if other is agent:
                continue
            try:
                found = await other.glance(half.migration_id)
            except FerryError:
                continue
            if found is not None and found.is_source is not half.is_source:
                return _Other(other.host, found)
        return _Other(half.peer, None) if any(one.host == half.peer for one in self._fleet.all()) else None


@dataclass(frozen=True, slots=True)
class _Other:
    """The host of the other side, and that side if its agent holds it."""

    host: str
    half: Half | None
