"""Following a migration to its end, through silences of the coordinator and through Ctrl-C.

The migration is the coordinator's: whatever happens to this process, it goes on. So losing sight of it is not an
outcome, and is told as what it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from common.errors import FerryError, Unreachable
from coordinator.cli.exits import FINAL_STATES
from coordinator.cli.interrupts import Interrupts, Wish
from coordinator.cli.link import new_request_id
from coordinator.cli.words import short_id
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from coordinator.cli.link import Coordinator
    from coordinator.cli.progress import Progress

# How long to wait before asking a silent coordinator again.
RETRY_S = 0.5
_MAX_EVENTS = 64
QUESTION = "cancel the migration? [y/N] (Ctrl-C again: yes) "


@dataclass(frozen=True, slots=True)
class Silent:
    """The coordinator does not answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CancelAnswered:
    """The coordinator answered our cancel; a refusal is its text."""

    refusal: str


Event: TypeAlias = pb.Migration | Silent | CancelAnswered | FerryError | Wish


@dataclass(frozen=True, slots=True)
class Sight:
    """How the following ended.

    Attributes:
        migration: the latest state seen.
        lost: why it was left before a final state; empty when the state is final.
        is_left: whether the user left with Ctrl-C.
    """

    migration: pb.Migration
    lost: str = ""
    is_left: bool = False


class Follower:
    """Follows one migration.

    Args:
        patience_s: how long to stay while nothing can move: the guest waits, or the coordinator is silent.
        may_cancel: whether Ctrl-C asks for a cancel; else it only ends the watching.
        answers_fd: where Ctrl-C's question is answered; None if nobody can.
        retry_s: how long to wait before a silent coordinator is asked again.
    """

    def __init__(  # noqa: PLR0913 -- all but two are for tests or for one caller
        self,
        coordinator: Coordinator,
        progress: Progress,
        *,
        patience_s: float,
        may_cancel: bool,
        answers_fd: int | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._coordinator = coordinator
        self._progress = progress
        self._patience_s = patience_s
        self._may_cancel = may_cancel
        self._retry_s = retry_s
        self._events: asyncio.Queue[Event] = asyncio.Queue(_MAX_EVENTS)
        self._interrupts = Interrupts(self._events.put_nowait, answers_fd=answers_fd if may_cancel else None)
        self._is_cancel_answered = False
        self._is_silent = False
        self._warned: set[str] = set()
        self._stuck_since_s: float | None = None

    async def follow(self, migration: pb.Migration) -> Sight:
        """Show the migration until it is final or there is nothing to see any more.

        Raises:
            FerryError: the coordinator refuses to tell.
        """
        outcome: Sight | FerryError | None = None
        with self._interrupts:
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(self._watch(migration.id))]
                while outcome is None:
                    event = await self._next_event()
                    if event is Wish.CANCEL and self._may_cancel:
                        self._progress.resume()
                        self._progress.note("cancelling, and waiting for the outcome")
                        helpers.append(tasks.create_task(self._cancel(migration.id)))
                    elif isinstance(event, pb.Migration):
                        migration = event
                        outcome = self._seen(migration)
                    else:
                        outcome = self._told(migration, event)
                for helper in helpers:
                    helper.cancel()
        if isinstance(outcome, FerryError):
            raise outcome
        return outcome

    def _seen(self, migration: pb.Migration) -> Sight | None:
        for warning in migration.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._progress.note(f"warning: {warning}")
        self._is_silent = False
        self._progress.update(migration)
        if migration.state in FINAL_STATES:
            return Sight(migration)
        self._set_stuck(is_stuck=migration.state == pb.Migration.STATE_WAITING)
        return None

    def _told(
        self, migration: pb.Migration, event: Silent | CancelAnswered | FerryError | Wish | None
    ) -> Sight | FerryError | None:
        match event:
            case None:
                return Sight(migration, lost="it stands still for too long to go on watching")
            case Silent(text):
                self._lose_sight(text)
            case CancelAnswered(refusal):
                self._is_cancel_answered = True
                self._progress.note(f"it cannot be cancelled any more: {refusal}" if refusal else "the cancel was taken")
            case FerryError():
                return event
            case Wish():
                return self._wished(migration, event)
            case _:
                assert_never(event)
        return None

    def _lose_sight(self, text: str) -> None:
        if not self._is_silent:
            self._progress.note(f"{text}; the hosts go on without it, asking again")
        self._is_silent = True
        self._set_stuck(is_stuck=True)

    def _wished(self, migration: pb.Migration, wish: Wish) -> Sight | None:
        match wish:
            case Wish.ASK:
                self._progress.ask(QUESTION)
                return None
            case Wish.GO_ON:
                self._progress.resume()
                return None
            case Wish.CANCEL:
                return Sight(migration, is_left=True, lost="left by Ctrl-C")
            case Wish.LEAVE:
                taken = "has taken" if self._is_cancel_answered else "may not have taken"
                return Sight(migration, is_left=True, lost=f"left by Ctrl-C; the coordinator {taken} the cancel")
            case _:
                assert_never(wish)

    async def _next_event(self) -> Event | None:
        """Wait for an event; None when patience has run out."""
        deadline_s = None if self._stuck_since_s is None else self._stuck_since_s + self._patience_s
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._events.get()
        except TimeoutError:
            return None

    def _set_stuck(self, *, is_stuck: bool) -> None:
        if not is_stuck:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = asyncio.get_running_loop().time()

    async def _watch(self, migration_id: str) -> None:
        """Put every state into the queue until a final one; ask again whenever the stream breaks."""
        while True:
            try:
                request = pb.WatchMigrationRequest(migration_id=migration_id)
                async for response in self._coordinator.follow(self._coordinator.stub.WatchMigration, request):
                    await self._events.put(response.migration)
                    if response.migration.state in FINAL_STATES:
                        return
                await self._events.put(Silent(f"{self._coordinator.title} ended its answer"))
            except Unreachable as error:
                await self._events.put(Silent(error.text))
            except FerryError as error:
                await self._events.put(error)
                return
            await asyncio.sleep(self._retry_s)

    async def _cancel(self, migration_id: str) -> None:
        """Ask for the cancel until it is answered."""
        request = pb.CancelMigrationRequest(request_id=new_request_id(), migration_id=migration_id)
        while True:
            try:
                await self._coordinator.change(self._coordinator.stub.CancelMigration, request)
            except Unreachable:
                await asyncio.sleep(self._retry_s)
            except FerryError as error:
                await self._events.put(CancelAnswered(error.text))
                return
            else:
                await self._events.put(CancelAnswered(""))
                return


def how_to_go_on(migration: pb.Migration) -> str:
    """Say how to look again after sight was lost."""
    return f"the migration goes on; look again: ferry migration watch {short_id(migration.id)}"
