"""Moving one VM: Begin, Prepare, Perform, Finish, Confirm, with what undoes them.

Nothing here is on the way of the guest's downtime: the agents hand over between themselves. The coordinator repeats Resume only
when the source's agent could not deliver it. Every step may be taken twice, so after a crash the workflow goes on wherever the
agents are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Final, TypeVar

import structlog
from opentelemetry import trace

from common.errors import Bug, FerryError, WrongState
from coordinator.agents import MAY_HAVE_HAPPENED, Agent, Begun, Prepared
from coordinator.board import Board, state_of
from coordinator.halves import Half, HalfState, Location, Move, MoveState
from coordinator.ownership import Decision, decide

T = TypeVar("T")

REPEAT_COUNT: Final = 3
RETRY_FIRST_S: Final = 0.2
RETRY_LAST_S: Final = 2.0
RESUME_PATIENCE_S: Final = 0.5
ASK_AGAIN_S: Final = 0.02
_SENT: Final = frozenset({HalfState.HANDING_OVER, HalfState.HANDED_OVER, HalfState.SUCCEEDED})
_tracer = trace.get_tracer("coordinator")
_log = structlog.get_logger()


class KeptAtSource(Exception):
    """The source's half ended without giving the guest away."""

    def __init__(self, half: Half) -> None:
        super().__init__(half.error)
        self.half = half


class Migration:
    """One migration under way."""

    def __init__(self, migration_id: str, source: Agent, destination: Agent, board: Board) -> None:
        self._id = migration_id
        self._source = source
        self._destination = destination
        self._board = board
        self._has_failed = False

    @property
    def move(self) -> Move:
        """The migration as it is now."""
        return self._board.get(self._id)

    async def run(self) -> None:
        """Move the VM, or take up a move that another coordinator began; ends when nothing is left to do on either host."""
        with _tracer.start_as_current_span("migration", attributes={"migration.id": self._id, "vm": self.move.vm_name}):
            try:
                await self._go_on(await self._ask_both())
            except KeptAtSource:
                pass
            except FerryError as error:
                _log.info("migration refused or failed", migration=self._id, error=error.text)
                self._note_failure(error)
            if not self.move.is_tidy:
                await self._settle()

    async def _go_on(self, halves: tuple[Half | None, Half | None]) -> None:
        match decide(*halves):
            case Decision.BEGIN:
                await self._from_the_beginning()
            case Decision.FOLLOW:
                await self._follow(self._source.watch(self._id))
                await self._complete()
            case Decision.FINISH:
                await self._complete()
            case Decision.ROLL_BACK | Decision.FENCE | Decision.LOST:
                pass  # `_settle` does it

    async def _from_the_beginning(self) -> None:
        async with AsyncExitStack() as undo:
            try:
                undo.push_async_callback(self._cancel)
                begun = await self._begin()

                undo.push_async_callback(self._abandon)
                prepared = await self._prepare(begun)

                await self._perform(prepared)
                undo.pop_all()  # point of no return: the guest is the destination's
            except asyncio.CancelledError:
                undo.pop_all()  # this coordinator is stopped; the next one goes on from here
                raise

        await self._complete()

    async def _complete(self) -> None:
        await self._resume_if_needed()
        self._board.change(self._id, state=MoveState.FINISHING, location=Location.DESTINATION, error="", error_reason="")
        await self._step("finish", lambda: self._until_answered("finish", lambda: self._destination.finish(self.move)))
        half = await self._step("confirm", lambda: self._until_answered("confirm", lambda: self._source.confirm(self.move)))
        self._board.see(self._id, half)
        self._board.change(self._id, error="", error_reason="")
        self._end(MoveState.SUCCEEDED, Location.DESTINATION)
        self._board.change(self._id, is_tidy=True)

    # steps

    async def _begin(self) -> Begun:
        begun = await self._step("begin", lambda: self._repeat(lambda: self._source.begin(self.move)))
        self._board.see(self._id, begun.half)
        self._refuse_if_cancelled()
        return begun

    async def _prepare(self, begun: Begun) -> Prepared:
        prepared = await self._step("prepare", lambda: self._repeat(lambda: self._destination.prepare(self.move, begun)))
        self._refuse_if_cancelled()
        return prepared

    async def _perform(self, prepared: Prepared) -> None:
        await self._step("perform", lambda: self._follow(self._source.perform(self.move, prepared)))

    def _refuse_if_cancelled(self) -> None:
        if self.move.cancel_wanted:
            raise WrongState("cancelled by a client", reason="CANCELLED")

    async def _step(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        self._board.change(self._id, step=name)
        with self._board.step(self.move, name), _tracer.start_as_current_span(f"migration.{name}"):
            try:
                return await work()
            except FerryError as error:
                self._note_failure(error)
                raise

    def _note_failure(self, error: FerryError) -> None:
        """Keep the first reason of a failure: what the undo says later follows from it."""
        if not self._has_failed:
            self._has_failed = True
            self._board.change(self._id, error=error.text, error_reason=error.reason)

    async def _follow(self, halves: AsyncGenerator[Half]) -> None:
        """Follow the source until the guest was sent, through its agent's restarts.

        Raises:
            KeptAtSource: the guest stays there, or was lost there.
        """
        delay_s = RETRY_FIRST_S
        while True:
            try:
                async with aclosing(halves):
                    async for half in halves:
                        self._see(half)
                        if half.state in _SENT:
                            return
                        if half.is_final:
                            raise KeptAtSource(half)
            except MAY_HAVE_HAPPENED as error:
                self._wait_for(f"{error.text}; the move goes on by itself, this is asked again")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
            halves = self._source.watch(self._id)

    def _see(self, half: Half) -> None:
        move = self._board.see(self._id, half)
        state = MoveState.WAITING if half.waiting_for else state_of(half)
        if half.is_final:
            state = move.state
        self._board.change(self._id, state=state)
        if not self._has_failed:
            self._board.change(self._id, error=half.error or half.waiting_for, error_reason=half.error_reason)

    def _wait_for(self, text: str) -> None:
        self._board.change(self._id, state=MoveState.WAITING, error=text, error_reason="WAITING_FOR_HOST")

    async def _resume_if_needed(self) -> None:
        """Return when the destination has the guest; repeat Resume to it when the source's agent could not.

        Raises:
            KeptAtSource: the destination proved that it never had the guest, and the source took it back.
        """
        began_s = time.monotonic()
        delay_s = ASK_AGAIN_S
        while True:
            try:
                destination = await self._destination.find(self._id)
                if destination is not None and destination.state in {HalfState.HANDED_OVER, HalfState.SUCCEEDED}:
                    return
                source = await self._source.find(self._id)
                if source is not None:
                    self._see(source)
                    if source.is_final and source.state is not HalfState.SUCCEEDED:
                        raise KeptAtSource(source)
                    if source.resume_token and time.monotonic() - began_s > RESUME_PATIENCE_S:
                        await self._destination.resume(self._id, source.resume_token, keep_paused=source.keep_paused)
                        return
            except FerryError as error:
                self._wait_for(self._waiting_text(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    def _waiting_text(self, error: FerryError) -> str:
        move = self.move
        return (
            f"the guest is stopped and given to {move.destination}, which does not run it yet: {error.text}; "
            f"it is asked again and again. "
            f"If {move.destination} is dead for good: ferry migration fence {self._id} --host {move.source}"
        )

    # undo and end

    async def _cancel(self) -> None:
        await self._try("cancel", lambda: self._source.cancel(self.move, self.move.error))

    async def _abandon(self) -> None:
        if self.move.location is Location.NOWHERE:
            return  # the destination may hold the only whole copy: `_settle` looks before it undoes anything
        await self._try("abandon", lambda: self._destination.abandon(self.move, self.move.error))

    async def _try(self, name: str, call: Callable[[], Awaitable[Half]]) -> None:
        """Undo once, with the call's own deadline; `_settle` sees to what could not be undone."""
        try:
            with self._board.step(self.move, name):
                await call()
        except FerryError as error:
            _log.info("undo refused", migration=self._id, step=name, error=error.text)

    async def _settle(self) -> None:
        """Undo what is left on both hosts, and say where the guest is, for as long as it takes."""
        delay_s = RETRY_FIRST_S
        while not self.move.is_tidy:
            try:
                await self._settle_once(await self._ask_both())
            except MAY_HAVE_HAPPENED as error:
                if not self.move.state.is_final:
                    self._wait_for(f"{self.move.error.partition('; waiting: ')[0]}; waiting: {error.text}")
            except KeptAtSource:
                continue
            if not self.move.is_tidy:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _settle_once(self, halves: tuple[Half | None, Half | None]) -> None:
        source, destination = halves
        match decide(source, destination):
            case Decision.FINISH:
                await self._complete()
            case Decision.FENCE:
                move = self.move
                self._wait_for(
                    f"{source.error if source else ''}: {move.destination} may hold the whole guest. "
                    f"If {move.source} is sure not to "
                    f"run it: ferry migration fence {self._id} --host {move.destination}"
                )
            case Decision.BEGIN | Decision.FOLLOW if source is not None:
                if source.state is not HalfState.CANCELLING:
                    await self._source.cancel(self.move, self.move.error)
            case decision:
                if source is not None and not source.is_final:
                    self._see(source)
                    return
                self._end_kept(source, is_lost=decision is Decision.LOST)
                if destination is not None and not destination.is_final:
                    destination = await self._destination.abandon(self.move, self.move.error)
                self._board.change(self._id, is_tidy=destination is None or destination.is_final)

    def _end_kept(self, source: Half | None, *, is_lost: bool) -> None:
        if self.move.state.is_final:
            return
        if source is not None:
            self._see(source)
        was_cancelled = self.move.error_reason == "CANCELLED" and not is_lost
        state = MoveState.CANCELLED if was_cancelled else MoveState.FAILED
        self._end(state, Location.NOWHERE if is_lost else Location.SOURCE)

    def _end(self, state: MoveState, location: Location) -> None:
        if not self.move.state.is_final:
            self._board.change(self._id, state=state, location=location, step="", ended_at_s=time.time())

    # asking

    async def _ask_both(self) -> tuple[Half | None, Half | None]:
        """Ask both agents for their halves, until both answered."""
        if not self.move.step:  # nothing was ever attempted
            return None, None
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await self._source.find(self._id), await self._destination.find(self._id)
            except MAY_HAVE_HAPPENED as error:
                source = await self._find_or_none(self._source)
                if source is not None and source.is_final and not self.move.state.is_final and source.location is Location.SOURCE:
                    self._end_kept(source, is_lost=False)  # told now; the destination is undone once it can be reached
                if not self.move.state.is_final:
                    self._wait_for(f"{self.move.error.partition('; waiting: ')[0]}; waiting: {error.text}".removeprefix("; "))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _find_or_none(self, agent: Agent) -> Half | None:
        try:
            return await agent.find(self._id)
        except FerryError:
            return None

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call again a few times when it may or may not have happened.

        A repeat that finds the half ended says nothing of why: the first failure does.
        """
        first: FerryError | None = None
        for attempt in range(1, REPEAT_COUNT + 1):
            try:
                return await call()
            except FerryError as error:
                if first is not None and error.reason == "MIGRATION_ENDED":
                    raise first from error
                if not isinstance(error, MAY_HAVE_HAPPENED) or attempt == REPEAT_COUNT:
                    raise
                first = error
                await asyncio.sleep(RETRY_FIRST_S * attempt)
        raise Bug("unreachable")

    async def _until_answered(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it is answered: past the point of no return there is no way back."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await call()
            except MAY_HAVE_HAPPENED as error:
                self._wait_for(f"the guest runs on {self.move.destination}; {name} is repeated: {error.text}")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)
