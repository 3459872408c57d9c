"""Giving up a migration whose hosts do not answer any more: what answers lets go of its side, and what is known is told.

Nothing is decided about the guest: a side that comes back is taken up again.
"""

from __future__ import annotations

from common.errors import WrongState
from coordinator.agents import Agent
from coordinator.halves import Half, Location
from coordinator.ownership import Silent, Word
from coordinator.workflows.moving import Failure, Moving

REASON = "GIVEN_UP"


async def let_go(moving: Moving) -> tuple[Word, Word]:
    """Let each side that answers end, without force; return what both are then.

    Raises:
        WrongState: both answer, so that nothing is to be given up; or a side may have the only copy of the guest.
    """
    source, destination = await moving.ask_both()
    if not isinstance(source, Silent) and not isinstance(destination, Silent):
        raise WrongState(
            f"migration {moving.migration_id}: both hosts answer, so it ends by itself; "
            "what it waits for, and what works, is in its error",
            reason="HOSTS_ANSWER",
        )
    return await _release(moving, moving.source, source), await _release(moving, moving.destination, destination)


async def _release(moving: Moving, agent: Agent, word: Word) -> Word:
    if not isinstance(word, Half) or word.is_final:
        return word
    return await moving.attempt("release", lambda: agent.release(moving.migration_id))


def tell(moving: Moving, source: Word, destination: Word) -> None:
    """Tell the end as far as it is known; an end that was told stays."""
    hosts = [
        host for host, word in ((moving.move.source, source), (moving.move.destination, destination)) if isinstance(word, Silent)
    ]
    verb = "does" if len(hosts) == 1 else "do"
    moving.failure = Failure(f"given up by an operator: {' and '.join(hosts)} {verb} not answer", REASON)
    moving.fail(_location(source, destination))
    moving.change(is_tidy=True)


def _location(source: Word, destination: Word) -> Location:
    for word in (destination, source):
        if isinstance(word, Half):
            return Location.ENDED_THERE if word.is_definition_kept else word.location
    return Location.UNKNOWN
