"""After a failure: undo what is left on both hosts, and say where the guest is, for as long as it takes.

Nothing is undone before both agents were asked: the destination may hold the only whole copy of the guest.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from common.errors import FerryError
from coordinator.agents import LOOK_TIMEOUT_S, Presence
from coordinator.halves import Half, HalfState, Location
from coordinator.ownership import Decision, Silent, Word, decide
from coordinator.workflows import texts
from coordinator.workflows.handover import TurnedBack, complete, let_go
from coordinator.workflows.moving import FORGOTTEN, Failure, Moving, Origin, is_superseded

_IS_THERE: Final = (Presence.RUNS, Presence.STOPPED)
_log = structlog.get_logger()


async def settle(moving: Moving) -> None:
    """Return when nothing is left to do on either host.

    Raises:
        FerryError: another coordinator has taken the migration over.
    """
    if not moving.move.state.is_final:
        moving.change(step="undo")
    loading_since_s: float | None = None
    look_s = moving.pace.first_look_s
    for delay_s in moving.pace.delays():
        source, destination = await moving.ask_both(timeout_s=look_s)
        look_s = LOOK_TIMEOUT_S
        now_s = moving.clock.monotonic_s()
        loading_since_s = (loading_since_s or now_s) if _may_become_whole(source, destination) else None
        is_patient = loading_since_s is None or now_s - loading_since_s < moving.pace.loading_patience_s
        try:
            await _settle_once(moving, source, destination, is_patient=is_patient)
        except TurnedBack:
            _log.info("turned back", migration=moving.migration_id)
        except FerryError as error:
            if is_superseded(error):
                raise
            moving.wait(error.text)
        if moving.move.is_tidy:
            return
        await asyncio.sleep(delay_s)


async def _settle_once(moving: Moving, source: Word, destination: Word, *, is_patient: bool) -> None:
    match decide(source, destination):
        case Decision.FINISH:
            await complete(moving)
        case Decision.LET_GO:
            await let_go(moving)
        case Decision.OVER if moving.origin is not Origin.CLIENT:
            await _tell_what_is_seen(moving)
        case Decision.ASK_AGAIN if source is None and moving.origin is Origin.CLIENT:  # it has refused Begin
            await _end(moving, source, destination, Location.SOURCE)
        case Decision.ASK_AGAIN if is_patient:
            moving.wait(texts.word_missing(moving.move, source, destination))
        case Decision.FENCE:
            moving.wait(texts.source_lost(moving.move, source, destination))
        case Decision.CONFLICT:
            await _end_conflict(moving, destination)
        case decision if isinstance(source, Half) and not source.is_final:
            await _end_source(moving, source, destination, decision)
        case Decision.LOST | Decision.ASK_AGAIN:
            await _end(moving, source, destination, Location.NOWHERE)
        case _:
            await _end(moving, source, destination, Location.SOURCE)


async def _end_source(moving: Moving, source: Half, destination: Word, decision: Decision) -> None:
    """Cancel what can be cancelled; a source that gave away a guest that has ended lets go of what it still holds."""
    if decision is Decision.LOST:
        moving.change(location=Location.NOWHERE)
        moving.wait(texts.destination_lost(moving.move, destination))
        if isinstance(destination, Half) and destination.is_final:
            await moving.attempt("confirm", lambda: moving.source.confirm_lost(moving.move, destination))
        return
    moving.see(source)
    if source.state is not HalfState.CANCELLING:
        await moving.attempt("cancel", lambda: moving.source.cancel(moving.move, moving.cause))


async def _end(moving: Moving, source: Word, destination: Word, location: Location) -> None:
    """Tell the end, then undo the destination."""
    for half in (source, destination):
        if isinstance(half, Half) and half.location is location and half.error:
            moving.note(Failure(half.error, half.error_reason))
    if isinstance(source, Half):
        moving.see(source)
    is_kept_there = isinstance(destination, Half) and destination.is_definition_kept
    moving.fail(Location.ENDED_THERE if is_kept_there and location is Location.NOWHERE else location)
    if isinstance(destination, Silent):
        moving.wait(destination.why)
        return
    if destination is not None and not destination.is_final:
        has_ended = source is None or (isinstance(source, Half) and source.is_final)  # what its agent has forgotten had ended
        destination = await moving.attempt(
            "abandon", lambda: moving.destination.abandon(moving.move, moving.cause, source_has_ended=has_ended)
        )
    moving.change(is_tidy=destination is None or destination.is_final)


async def _tell_what_is_seen(moving: Moving) -> None:
    """End a migration that neither agent knows: nothing is done to the guest, and an end that was told stays."""
    vm = moving.move.vm_uuid or moving.move.vm_name
    is_at_source = await moving.source.find_vm(vm) in _IS_THERE
    is_at_destination = await moving.destination.find_vm(vm) in _IS_THERE
    if is_at_destination and not is_at_source:
        moving.change(warnings=(*moving.move.warnings, texts.forgotten(moving.move)))
        moving.succeed()
        return
    moving.note(Failure(texts.forgotten(moving.move), FORGOTTEN))
    moving.fail(Location.SOURCE if is_at_source and not is_at_destination else Location.UNKNOWN)
    moving.change(is_tidy=True)


async def _end_conflict(moving: Moving, destination: Word) -> None:
    """Let go of the guest on both hosts, loudly: what is to be ended is an operator's choice."""
    if isinstance(destination, Half) and not destination.is_final:
        if destination.state is not HalfState.HANDED_OVER:
            moving.wait(texts.conflict_waits(moving.move, destination))
            return
        await moving.attempt("finish", lambda: moving.destination.finish(moving.move))
    moving.failure = Failure(texts.conflict(moving.move, destination), "GUEST_ON_BOTH_HOSTS")
    moving.fail(Location.UNKNOWN)
    moving.change(location=Location.UNKNOWN, error=moving.failure.text, error_reason=moving.failure.reason, is_tidy=True)


def _may_become_whole(source: Word, destination: Word) -> bool:
    """Say whether the source has ended and the destination still loads what it had sent."""
    is_lost = isinstance(source, Half) and source.location is Location.NOWHERE
    return is_lost and isinstance(destination, Half) and destination.state is HalfState.TRANSFERRING
