"""What a migration that waits tells: why, and how an operator may go on. Pure.

The commands are those that the agents advise for their halves as they are now; none is made up here.
"""

from __future__ import annotations

from common.advice import migration_command
from coordinator.halves import Half, Move
from coordinator.ownership import Silent, Word, holds_all


def source_silent(move: Move, why: str, destination: Word) -> str:
    """Tell that the source's agent does not answer."""
    state = "the move goes on by itself, this is asked again"
    if holds_all(destination):
        state = f"{move.destination} holds the whole guest and waits for word from {move.source}"
    return f"{why}; {state}{_advice(move, move.destination, destination)}"


def destination_silent(move: Move, why: str, source: Word) -> str:
    """Tell that the guest was given away and the destination does not take it."""
    return (
        f"the guest is stopped and given to {move.destination}, which does not run it yet: {why}; "
        f"it is asked again and again{_advice(move, move.source, source)}"
    )


def word_missing(move: Move, source: Word, destination: Word) -> str:
    """Tell whose word is missing."""
    if isinstance(source, Silent):
        return source_silent(move, source.why, destination)
    if isinstance(destination, Silent):
        return f"{destination.why}; this is asked again{_advice(move, move.source, source)}"
    return f"{move.destination} has not said yet whether it has all of the guest; this is asked again"


def half_waits(move: Move, source: Half) -> str:
    """Tell what the source's half waits for."""
    return f"{source.waiting_for}{_advice(move, move.source, source)}"


def source_lost(move: Move, source: Word, destination: Word) -> str:
    """Tell that the source cannot run the guest and the destination holds all of it."""
    why = source.error if isinstance(source, Half) and source.error else f"{move.source} does not know the migration any more"
    return f"{why}: {move.destination} may hold the whole guest{_advice(move, move.destination, destination)}"


def destination_lost(move: Move, destination: Word) -> str:
    """Tell that the guest ended at the destination while the source still ends what it holds of it."""
    why = f" ({destination.error})" if isinstance(destination, Half) and destination.error else ""
    return f"the guest ended on {move.destination} after it had been taken over{why}; {move.source} ends what it still holds of it"


def conflict(move: Move, destination: Word) -> str:
    """Tell that both hosts own the guest."""
    name_there = destination.vm_name if isinstance(destination, Half) else move.vm_name
    return (
        f"the guest may run on both hosts: {move.source} was fenced and {move.destination} has taken the guest over. "
        f"End one of them at once: ferry vm stop {move.vm_name} --force --host {move.source}  or  "
        f"ferry vm stop {name_there} --force --host {move.destination}"
    )


def conflict_waits(move: Move, destination: Word) -> str:
    """Tell that the source owns the guest again and the destination is about to run it."""
    return (
        f"{move.source} was fenced and {move.destination} is about to run the guest too"
        f"{_advice(move, move.destination, destination)}"
    )


def repeated(move: Move, what: str, other: str, word: Word) -> str:
    """Tell that a step past the point of no return is repeated, and what works on the other host."""
    return f"the guest runs on {move.destination}; {what}{_advice(move, other, word)}"


def forgotten(move: Move) -> str:
    """Tell that nobody knows how a migration ended."""
    return (
        f"neither {move.source} nor {move.destination} knows the migration: it never began, or ended while this coordinator "
        "did not know of it; nothing was done to the guest now"
    )


def begun_for_nobody(move: Move) -> str:
    """Tell that a migration is undone since the coordinator that began it has lost its journal."""
    return f"{move.source} had begun it for a coordinator that does not know it any more, so it was undone; start it again"


def superseded(why: str) -> str:
    """Tell that this coordinator has nothing to say any more."""
    return f"another coordinator has taken this migration over: {why}"


def _give_up(move: Move) -> str:
    """Tell the command for a host that is dead for good while nothing of the other one is in doubt."""
    return f"; if that host is dead for good (powered off, not merely silent): ferry migration release {move.migration_id}"


def _advice(move: Move, host: str, word: Word) -> str:
    """Tell what works on the half that answers as it is."""
    if not isinstance(word, Half) or word.is_final:
        return _give_up(move)
    return "".join(
        f"; {one.condition}: {migration_command(one.verb, move.migration_id, host=host, is_forced=one.is_forced)}"
        for one in word.advice
    )
