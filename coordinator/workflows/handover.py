"""The way of the guest from the source to the destination: follow it, see that it goes on there, finish and confirm.

The agents hand over between themselves; the coordinator repeats Resume only when the source's agent could not deliver it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar

import structlog

from common.errors import FerryError, NotFound, WrongState
from common.storage import STORAGE_REASONS
from coordinator.agents import MAY_HAVE_HAPPENED
from coordinator.halves import Half, HalfState, Location, MoveState
from coordinator.ownership import Decision, Silent, Word, decide, has_taken_over, is_halved
from coordinator.workflows import texts
from coordinator.workflows.moving import Moving

T = TypeVar("T")

_GIVEN: Final = frozenset({HalfState.HANDING_OVER, HalfState.HANDED_OVER, HalfState.SUCCEEDED})
_log = structlog.get_logger()


class TurnedBack(Exception):
    """The guest did not go over, or not to stay: what both agents say decides."""


async def follow(moving: Moving, open_stream: Callable[[], AsyncGenerator[Half]]) -> None:
    """Follow the source until the guest is given away, through its agent's restarts.

    While it changes hands nobody is asked anything, which would only delay the agents.

    Raises:
        TurnedBack: the guest stays there, or was lost there.
        FerryError: the source's agent refuses.
    """
    delays = moving.pace.delays()
    while True:
        try:
            async with asyncio.timeout(None) as patience, aclosing(open_stream()) as halves:
                async for half in halves:
                    delays = moving.pace.delays()
                    moving.see(half)
                    if half.state is HalfState.HANDING_OVER:
                        patience.reschedule(asyncio.get_running_loop().time() + moving.pace.resume_patience_s)
                    elif half.state in _GIVEN:
                        return
                    elif half.is_final:
                        raise TurnedBack
        except TimeoutError:
            return
        except MAY_HAVE_HAPPENED as error:
            destination = await moving.ask(moving.destination)
            if has_taken_over(destination) and not is_halved(destination):
                return
            moving.wait(texts.source_silent(moving.move, error.text, destination))
        await asyncio.sleep(next(delays))
        if moving.move.cancel_wanted:
            await repeat_cancel(moving)


async def repeat_cancel(moving: Moving) -> None:
    """Pass on a client's wish that the source may not have heard; the outcome is told by following it."""
    try:
        await moving.attempt("cancel", lambda: moving.source.cancel(moving.move, ""))
    except FerryError as error:
        _log.info("cancel not taken", migration=moving.migration_id, error=error.text)


async def complete(moving: Moving) -> None:
    """See that the guest goes on at the destination, and free the source; it has been given away.

    Raises:
        TurnedBack: it is the source's again, or runs nowhere.
        FerryError: an agent refuses.
    """
    await _ensure_resumed(moving)
    while moving.is_halved:
        await follow(moving, lambda: moving.source.watch(moving.migration_id))
        await _ensure_resumed(moving)
    if not moving.move.state.is_final:
        moving.change(state=MoveState.FINISHING, location=Location.DESTINATION, error="", error_reason="")
    kept = await moving.step("finish", lambda: _until_answered(moving, "finish", lambda: _finish(moving)))
    half = await moving.step("confirm", lambda: _until_answered(moving, "confirm", lambda: _confirm(moving)))
    if half is not None and half.state in _GIVEN:
        moving.board.see(moving.migration_id, half)
    if kept.progress:  # serialised messages are merged by putting one behind the other
        moving.change(progress=moving.move.progress + kept.progress)
    told = moving.move.warnings
    moving.change(warnings=(*told, *(text for text in kept.warnings if text not in told)))
    moving.succeed()


async def let_go(moving: Moving) -> None:
    """Free the source of a guest that has gone on at the destination, whose agent has ended and forgotten the migration."""
    vm = moving.move.vm_uuid or moving.move.vm_name
    if await moving.destination.find_vm(vm) is None:  # the definition stays where it is, marked as moved away
        await moving.attempt("release", lambda: moving.source.release(moving.migration_id))
    else:
        await moving.attempt("confirm", lambda: _confirm(moving))
    moving.succeed()


async def _ensure_resumed(moving: Moving) -> None:
    """Return when the destination has the guest; repeat Resume to it when the source's agent could not.

    Raises:
        TurnedBack: it will not have it.
    """
    began_s = moving.clock.monotonic_s()
    for delay_s in moving.pace.short_delays():
        source, destination = await moving.ask_both()
        moving.is_halved = is_halved(source) or is_halved(destination)
        if has_taken_over(destination) and not _is_resuming(destination):
            return
        if decide(source, destination) not in {Decision.FINISH, Decision.FOLLOW, Decision.ASK_AGAIN}:
            raise TurnedBack
        if moving.resume_token and moving.clock.monotonic_s() - began_s >= moving.pace.resume_patience_s:
            try:
                await moving.attempt("resume", lambda: _resume(moving))
            except FerryError as error:
                moving.wait(texts.destination_silent(moving.move, error.text, source))
            else:
                return
        elif isinstance(destination, Silent):
            moving.wait(texts.destination_silent(moving.move, destination.why, source))
        elif isinstance(source, Silent):
            moving.wait(texts.source_silent(moving.move, source.why, destination))
        elif source is not None:
            moving.see(source)
        await asyncio.sleep(delay_s)


def _is_resuming(destination: Word) -> bool:
    return isinstance(destination, Half) and destination.state is HalfState.HANDING_OVER


async def _resume(moving: Moving) -> None:
    await moving.destination.resume(moving.migration_id, moving.resume_token, keep_paused=moving.keep_paused)


async def _finish(moving: Moving) -> Half:
    """Let the destination keep the guest.

    Raises:
        TurnedBack: it has ended there.
    """
    try:
        return await moving.destination.finish(moving.move)
    except WrongState:
        half = await moving.destination.find(moving.migration_id)
        if half is not None and half.location is Location.NOWHERE:
            raise TurnedBack from None
        raise


async def _confirm(moving: Moving) -> Half | None:
    """End the source's QEMU; one that has ended, or that its agent has forgotten, need not be."""
    try:
        return await moving.source.confirm(moving.move)
    except NotFound:
        return None
    except WrongState:
        half = await moving.source.find(moving.migration_id)
        if half is None or (half.is_final and half.location is not Location.SOURCE):
            return half
        raise


async def _until_answered(moving: Moving, name: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is answered: past the point of no return there is no way back."""
    delays = moving.pace.delays()
    while True:
        try:
            return await call()
        except WrongState as error:  # it goes on when there is room again
            if error.reason not in STORAGE_REASONS:
                raise
            moving.wait(f"the guest runs on {moving.move.destination}; {name} is repeated: {error.text}")
        except MAY_HAVE_HAPPENED as error:
            other = moving.source if name == "finish" else moving.destination
            moving.wait(texts.repeated(moving.move, f"{name} is repeated: {error.text}", other.host, await moving.ask(other)))
        await asyncio.sleep(next(delays))
