"""Who owns the guest, and what the coordinator has to do next, from what both agents say. Pure.

The journal tells only what was attempted; the agents' halves are the truth. `None` stands for a half that its agent, which
answered, does not know.
"""

from __future__ import annotations

from enum import Enum

from coordinator.halves import Half, HalfState, Location


class Decision(Enum):
    """What to do next."""

    BEGIN = "begin anew: nothing irrevocable has happened, and every step may be repeated"
    FOLLOW = "the source is at work: follow it to its outcome"
    FINISH = "the guest is the destination's: resume it if need be, finish and confirm"
    ROLL_BACK = "the guest stays at the source: undo the destination"
    FENCE = "the source lost the guest and the destination may hold it: an operator decides"
    LOST = "the guest runs nowhere: undo what is left"


_AT_WORK = frozenset({HalfState.TRANSFERRING, HalfState.SWITCHING, HalfState.CANCELLING})
_SENT = frozenset({HalfState.HANDING_OVER, HalfState.HANDED_OVER, HalfState.SUCCEEDED})


def decide(source: Half | None, destination: Half | None) -> Decision:  # noqa: PLR0911 - one line a case
    """Decide what to do next."""
    if destination is not None and _holds_guest(destination):
        return Decision.FINISH
    if destination is not None and destination.location is Location.NOWHERE:
        return Decision.LOST
    if source is None:
        return Decision.ROLL_BACK if destination is not None else Decision.BEGIN
    if source.state in _SENT:
        return Decision.FINISH
    if source.state in _AT_WORK:
        return Decision.FOLLOW
    if source.state is HalfState.PREPARING:
        return Decision.BEGIN
    if source.location is Location.NOWHERE:
        return Decision.FENCE if destination is not None and destination.phase == "Loaded" else Decision.LOST
    return Decision.ROLL_BACK


def _holds_guest(destination: Half) -> bool:
    return destination.state in _SENT
