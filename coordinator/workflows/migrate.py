"""Moving one VM: Begin, Prepare, Perform, Finish, Confirm, with what undoes them.

Nothing here is on the way of the guest's downtime: the agents hand over between themselves. Every step may be taken twice, so after
a crash the workflow goes on wherever the agents are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TypeVar

import structlog
from opentelemetry import trace

from common.errors import FerryError, NotFound
from coordinator.agents import MAY_HAVE_HAPPENED, Begun, Prepared
from coordinator.halves import Half, Location
from coordinator.ownership import Decision, Silent, decide
from coordinator.workflows import texts
from coordinator.workflows.handover import TurnedBack, complete, follow
from coordinator.workflows.interrupt import unless_cancelled
from coordinator.workflows.moving import FORGOTTEN, Failure, Moving, Origin, is_superseded
from coordinator.workflows.settle import settle

T = TypeVar("T")

_tracer = trace.get_tracer("coordinator")
_log = structlog.get_logger()


async def migrate(moving: Moving) -> None:
    """Move a VM, or take up a move that another coordinator began; ends when nothing is left to do on either host."""
    attributes = {"migration.id": moving.migration_id, "vm": moving.move.vm_name}
    with _tracer.start_as_current_span("migration", attributes=attributes):
        try:
            await _try_to_move(moving)
            if not moving.move.is_tidy:
                await settle(moving)
        except FerryError as error:  # only another coordinator ends a workflow before its time
            moving.wait(texts.superseded(error.text))
            await _until_the_other_has_ended_it(moving)
            await settle(moving)


async def _until_the_other_has_ended_it(moving: Moving) -> None:
    """Look on, and change nothing, until neither host has anything left of it."""
    for delay_s in moving.pace.delays():
        words = await moving.ask_both()
        halves = [word for word in words if isinstance(word, Half)]
        if halves and not any(isinstance(word, Silent) for word in words) and all(half.is_final for half in halves):
            moving.change(epoch=max(moving.move.epoch, *(half.epoch for half in halves)))
            return
        await asyncio.sleep(delay_s)


async def _try_to_move(moving: Moving) -> None:
    if moving.move.state.is_final or moving.failure is not None:
        return  # only the undo is left
    try:
        await _go_on(moving)
    except TurnedBack:
        _log.info("turned back", migration=moving.migration_id)
    except FerryError as error:
        if is_superseded(error):
            raise
        _log.info("migration refused or failed", migration=moving.migration_id, error=error.text)
        moving.note(error)


async def _go_on(moving: Moving) -> None:
    match await _decide(moving):
        case Decision.BEGIN if moving.origin is Origin.AGENTS:
            moving.note(Failure(texts.begun_for_nobody(moving.move), FORGOTTEN))
        case Decision.BEGIN:
            await _after_undo(moving)
            await _in_turn(moving)
            await complete(moving)
        case Decision.FOLLOW:
            await follow(moving, lambda: moving.source.watch(moving.migration_id))
            await complete(moving)
        case Decision.FINISH:
            await complete(moving)
        case _:
            pass  # `settle` does it


async def _after_undo(moving: Moving) -> None:
    """Let an earlier migration of the VM be undone first, whose copies are in the way; not for long: its host may be away."""
    with suppress(TimeoutError):
        async with asyncio.timeout(moving.pace.earlier_patience_s):
            await unless_cancelled(moving, lambda: moving.board.wait_undone(moving.move))


async def _in_turn(moving: Moving) -> None:
    """Move it when both hosts have a slot, and hold those until the guest has changed hands, or does not."""
    move = moving.move
    async with AsyncExitStack() as stack:
        try:
            slot = moving.slots.hold(move.source, move.destination, moving.queue)
            await unless_cancelled(moving, lambda: stack.enter_async_context(slot))
        except FerryError as error:
            moving.note(error)
            raise
        moving.dequeue()
        await _from_the_beginning(moving)


async def _from_the_beginning(moving: Moving) -> None:
    async with AsyncExitStack() as undo:
        try:
            undo.push_async_callback(_undo, moving, "cancel", lambda: _keep(moving))
            begun = await moving.step("begin", lambda: _repeat(moving, lambda: moving.source.begin(moving.move)))
            moving.see(begun.half)

            undo.push_async_callback(_undo, moving, "abandon", lambda: moving.destination.abandon(moving.move, moving.cause))
            prepared = await moving.step("prepare", lambda: _prepare(moving, begun))

            undo.pop_all()  # point of no return: the agents go on by themselves, and only what they say decides
        except FerryError as error:
            if is_superseded(error):
                undo.pop_all()  # it is not this coordinator's any more
            else:
                moving.note(error)
            raise
        except asyncio.CancelledError:
            undo.pop_all()  # this coordinator is stopped; the next one goes on from here
            raise

    await moving.step("perform", lambda: follow(moving, lambda: moving.source.perform(moving.move, prepared)))


async def _prepare(moving: Moving, begun: Begun) -> Prepared:
    return await _repeat(moving, lambda: moving.destination.prepare(moving.move, begun))


async def _keep(moving: Moving) -> None:
    """Cancel at the source, and tell the end as soon as the source has: nothing was ever sent."""
    try:
        await moving.source.cancel(moving.move, moving.cause)
    except NotFound:
        if moving.failure is not None:
            moving.fail(Location.SOURCE)
        return
    async with aclosing(moving.source.watch(moving.migration_id)) as halves:
        async for half in halves:
            if half.is_final and half.location is Location.SOURCE and moving.failure is not None:
                moving.see(half)
                moving.fail(Location.SOURCE)


async def _undo(moving: Moving, name: str, call: Callable[[], Awaitable[object]]) -> None:
    """Undo once, without much patience; `settle` sees to what could not be undone."""
    try:
        async with asyncio.timeout(moving.pace.undo_patience_s):
            await moving.attempt(name, call)
    except TimeoutError:
        _log.info("undo not answered yet", migration=moving.migration_id, step=name)
    except FerryError as error:
        _log.info("undo refused", migration=moving.migration_id, step=name, error=error.text)


async def _decide(moving: Moving) -> Decision:
    """Ask both agents until the source has answered."""
    if moving.origin is Origin.CLIENT:  # nothing was ever attempted
        return Decision.BEGIN
    delays = moving.pace.delays()
    while True:
        source, destination = await moving.ask_both()
        decision = decide(source, destination)
        if not (decision is Decision.ASK_AGAIN and isinstance(source, Silent)):
            return decision
        moving.wait(texts.word_missing(moving.move, source, destination))
        await asyncio.sleep(next(delays))


async def _repeat(moving: Moving, call: Callable[[], Awaitable[T]]) -> T:
    """Call again a few times when it may or may not have happened.

    A repeat that finds the half ended says nothing of why: the first failure does.
    """
    first: FerryError | None = None
    delays = moving.pace.delays()
    attempt_count = 0
    while True:
        try:
            return await unless_cancelled(moving, call)
        except FerryError as error:
            attempt_count += 1
            if first is not None and error.reason == "MIGRATION_ENDED":
                raise first from error
            if not isinstance(error, MAY_HAVE_HAPPENED) or attempt_count == moving.pace.repeat_count:
                raise
            first = first or error
        await asyncio.sleep(next(delays))
