"""What a migration that waits tells: why, and how an operator may go on. Pure."""

from __future__ import annotations

from coordinator.halves import Half, Move
from coordinator.ownership import Silent, Word, holds_all


def source_silent(move: Move, why: str, destination: Word) -> str:
    """Tell that the source's agent does not answer."""
    if holds_all(destination):
        return (
            f"{why}; {move.destination} holds the whole guest and waits for word from {move.source}. "
            f"If {move.source} is dead for good: {_fence(move, move.destination)}"
        )
    return f"{why}; the move goes on by itself, this is asked again"


def destination_silent(move: Move, why: str) -> str:
    """Tell that the guest was given away and the destination does not take it."""
    return (
        f"the guest is stopped and given to {move.destination}, which does not run it yet: {why}; "
        f"it is asked again and again. If {move.destination} is dead for good: {_fence(move, move.source)}"
    )


def word_missing(move: Move, source: Word, destination: Word) -> str:
    """Tell whose word is missing."""
    if isinstance(source, Silent):
        return source_silent(move, source.why, destination)
    if isinstance(destination, Silent):
        return f"{destination.why}; this is asked again"
    return f"{move.destination} has not said yet whether it has all of the guest; this is asked again"


def source_lost(move: Move, source: Word) -> str:
    """Tell that the source cannot run the guest and the destination holds all of it."""
    why = source.error if isinstance(source, Half) and source.error else f"{move.source} does not know the migration any more"
    return (
        f"{why}: {move.destination} may hold the whole guest. If {move.source} is sure not to run it: "
        f"{_fence(move, move.destination)}"
    )


def destination_lost(move: Move, destination: Word) -> str:
    """Tell that the guest ended at the destination while the source still holds what it gave away."""
    why = f" ({destination.error})" if isinstance(destination, Half) and destination.error else ""
    return (
        f"the guest ended on {move.destination} after it had been given away{why}; {move.source} holds it as it was then. "
        f"To go on from there, only if it has written nothing to its disks since: {_fence(move, move.source)}"
    )


def conflict(move: Move) -> str:
    """Tell that both hosts own the guest."""
    stop = f"ferry vm stop {move.vm_name} --force --host"
    return (
        f"the guest may run on both hosts: {move.source} was fenced and {move.destination} has taken the guest over. "
        f"End one of them at once: {stop} {move.source}  or  {stop} {move.destination}"
    )


def superseded(why: str) -> str:
    """Tell that this coordinator has nothing to say any more."""
    return f"another coordinator has taken this migration over: {why}"


def _fence(move: Move, host: str) -> str:
    return f"ferry migration fence {move.migration_id} --host {host}"
