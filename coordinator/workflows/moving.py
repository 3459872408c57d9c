"""One migration as its workflow handles it: both agents, its entry on the board, the first reason of a failure.

Nothing is decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

import structlog
from opentelemetry import trace

from common.clock import Clock
from common.errors import Bug, FerryError
from coordinator.agents import LOOK_TIMEOUT_S, Agent
from coordinator.board import Board, state_of
from coordinator.halves import Half, Location, Move, MoveState
from coordinator.ownership import Silent, Word
from coordinator.slots import Slots
from coordinator.workflows import texts
from coordinator.workflows.pace import Pace

T = TypeVar("T")

WAITING: Final = "WAITING_FOR_HOST"
QUEUED: Final = "QUEUED"
CANCELLED: Final = "CANCELLED"
_BY_WISH: Final = frozenset({CANCELLED, "RELEASED"})
FORGOTTEN: Final = "MIGRATION_FORGOTTEN"
SUPERSEDED: Final = "EPOCH_STALE"
_WAITING_MARK: Final = "; waiting: "
_tracer = trace.get_tracer("coordinator")
_log = structlog.get_logger()


class Origin(Enum):
    """Whose word a migration is carried out on; only a client's, given just now, begins one that no agent knows."""

    CLIENT = "a client asked for it just now"
    JOURNAL = "the journal of an earlier coordinator has it"
    AGENTS = "agents hold sides of it that no journal knows"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a migration does not happen."""

    text: str
    reason: str


@dataclass(slots=True)
class Moving:
    """A migration under way.

    Attributes:
        failure: the first reason why it does not happen; what the undo says later follows from it.
        resume_token, keep_paused: what Resume needs, once the source told it. In memory only.
        origin: whose word it is carried out on.
        is_halved: whether part of the guest's memory was still at the source when both were asked last.
    """

    migration_id: str
    source: Agent
    destination: Agent
    board: Board
    clock: Clock
    slots: Slots
    pace: Pace = field(default_factory=Pace)
    failure: Failure | None = None
    resume_token: bytes = b""
    keep_paused: bool = False
    is_halved: bool = False
    origin: Origin = Origin.CLIENT
    _met: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Remember why an earlier coordinator gave the migration up."""
        move = self.move
        if move.error_reason not in {"", WAITING, QUEUED, Bug.default_reason}:
            self.failure = Failure(move.error.partition(_WAITING_MARK)[0], move.error_reason)

    def __repr__(self) -> str:
        """Show no token."""
        return f"Moving({self.migration_id})"

    @property
    def move(self) -> Move:
        """The migration as it is now."""
        return self.board.get(self.migration_id)

    @property
    def cause(self) -> str:
        """Why it is undone, for the agents; empty means a user's wish."""
        return "" if self.failure is None or self.failure.reason == CANCELLED else self.failure.text

    def change(self, **changes: object) -> None:
        """Change the entry on the board."""
        self.board.change(self.migration_id, **changes)

    # what the agents say

    async def ask_both(self, *, timeout_s: float = LOOK_TIMEOUT_S) -> tuple[Word, Word]:
        """Ask both agents for their halves at the same time."""
        async with asyncio.TaskGroup() as group:
            source = group.create_task(self.ask(self.source, timeout_s=timeout_s))
            destination = group.create_task(self.ask(self.destination, timeout_s=timeout_s))
        return source.result(), destination.result()

    async def ask(self, agent: Agent, *, timeout_s: float = LOOK_TIMEOUT_S) -> Word:
        """Ask an agent for its half; one that cannot tell is as silent as one that does not answer."""
        try:
            half = await agent.find(self.migration_id, timeout_s=timeout_s)
        except FerryError as error:
            return Silent(error.text)
        if half is not None and agent is self.source:
            self._learn(half)
        if half is not None and agent.host not in self._met:
            self._met.add(agent.host)
            self._outrank(half)
        return half

    def _outrank(self, half: Half) -> None:
        """Speak in a higher epoch than any before, which an old journal does not know."""
        if self.origin is not Origin.CLIENT and half.epoch > self.move.epoch:
            self.change(epoch=half.epoch + 1)

    def see(self, half: Half) -> None:
        """Take over what the source says."""
        self._learn(half)
        if self.move.state.is_final:
            return
        self.board.see(self.migration_id, half)
        if half.is_final:
            if half.error:
                self.note(Failure(half.error, half.error_reason))
            return
        self.change(state=MoveState.WAITING if half.waiting_for else state_of(half))
        if self.failure is None:
            waits = texts.half_waits(self.move, half) if half.waiting_for else ""
            self.change(error=half.error or waits, error_reason=WAITING if half.waiting_for else half.error_reason)

    def _learn(self, half: Half) -> None:
        if half.resume_token:
            self.resume_token, self.keep_paused = half.resume_token, half.keep_paused

    # what is told

    def note(self, failure: Failure | FerryError) -> None:
        """Keep the first reason of a failure."""
        if self.failure is None:
            self.failure = Failure(failure.text, failure.reason)
            self.change(error=self.failure.text, error_reason=self.failure.reason)

    def wait(self, text: str) -> None:
        """Say what the migration waits for; an end that was told stays."""
        if self.move.state.is_final:
            _log.debug("waiting", migration=self.migration_id, error=text)
        elif self.failure is None:
            self.change(state=MoveState.WAITING, error=text, error_reason=WAITING)
        else:
            text = f"{self.failure.text}{_WAITING_MARK}{text}"
            self.change(state=MoveState.WAITING, error=text, error_reason=self.failure.reason)

    def queue(self, text: str) -> None:
        """Say what it waits for before anything is done."""
        self.change(error=text, error_reason=QUEUED)

    def dequeue(self) -> None:
        """Say that its turn has come."""
        if self.move.error_reason == QUEUED:
            self.change(error="", error_reason="")

    def succeed(self) -> None:
        """Tell that the guest is at the destination and nothing is left to do; an end that was told stays."""
        if not self.move.state.is_final:
            self._end(MoveState.SUCCEEDED, Location.DESTINATION, Failure("", ""))
        self.change(is_tidy=True)

    def fail(self, location: Location) -> None:
        """Tell that the guest is not at the destination; an end that was told stays."""
        if self.move.state.is_final:
            return
        failure = self.failure or Failure(f"{self.move.source} does not know the migration any more", "MIGRATION_UNKNOWN")
        was_cancelled = failure.reason in _BY_WISH and location is Location.SOURCE
        self._end(MoveState.CANCELLED if was_cancelled else MoveState.FAILED, location, failure)

    def _end(self, state: MoveState, location: Location, failure: Failure) -> None:
        self.change(
            state=state,
            location=location,
            step="",
            error=failure.text,
            error_reason=failure.reason,
            ended_at_s=self.clock.wall_s(),
        )

    # what is tried

    async def step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Take a step: told, journalled before and after, with a span."""
        self.change(step=name)
        return await self.attempt(name, work)

    async def attempt(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something to an agent: journalled before and after, with a span."""
        with self.board.step(self.move, name), _tracer.start_as_current_span(f"migration.{name}"):
            return await work()


def is_superseded(error: FerryError) -> bool:
    """Say whether an agent refuses because another coordinator has taken the migration over."""
    return error.reason == SUPERSEDED
