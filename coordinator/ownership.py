"""Who owns the guest, and what the coordinator has to do next, from what both agents say. Pure.

The journal tells only what was attempted; the agents' halves are the truth. `None` stands for a half that its agent, which
answered, does not know; `Silent` for an agent that did not answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from coordinator.halves import Half, HalfState, Location


@dataclass(frozen=True, slots=True)
class Silent:
    """An agent that did not answer.

    Attributes:
        why: how it was silent, in words.
    """

    why: str


Word: TypeAlias = Half | Silent | None


class Decision(Enum):
    """What to do next."""

    BEGIN = "begin anew: nothing irrevocable has happened, and every step may be repeated"
    FOLLOW = "the source is at work: follow it to its outcome"
    FINISH = "the guest is the destination's: resume it if need be, finish and confirm"
    ROLL_BACK = "the guest stays at the source: undo what is left"
    ASK_AGAIN = "a word is missing, or the destination is about to know: nothing may be undone yet"
    FENCE = "the source cannot run the guest and the destination holds all of it: an operator decides"
    CONFLICT = "both hosts own the guest, since one was fenced that lived: an operator decides"
    LOST = "the guest runs nowhere: undo what is left"
    LET_GO = "the destination had the guest and has forgotten the migration, so it was finished: the source lets go"
    OVER = "neither agent knows it: it has ended, or never began; nothing is done, what is seen is told"


class _At(Enum):
    """Where one half leaves the guest."""

    SILENT = auto()
    UNKNOWN = auto()  # the agent has no such half
    READY = auto()  # source: begun; destination: listens
    AT_WORK = auto()  # source: sends; destination: loads
    WHOLE = auto()  # destination: holds the whole guest, which has not run there
    GIVEN = auto()  # source: gave it away; destination: took it over
    TAKEN = auto()  # source: gave it away, and knows that it has gone on there
    HALVED = auto()  # post-copy: the guest is the destination's, part of its memory is still at the source
    KEPT = auto()  # source: keeps it; destination: undone
    LOST = auto()  # its QEMU ended
    UNREADABLE = auto()  # an agent of another version


_STATES = {
    HalfState.PREPARING: _At.READY,
    HalfState.TRANSFERRING: _At.AT_WORK,
    HalfState.POST_COPY: _At.HALVED,
    HalfState.HANDING_OVER: _At.GIVEN,
    HalfState.HANDED_OVER: _At.GIVEN,
    HalfState.SUCCEEDED: _At.GIVEN,
    HalfState.FAILED: _At.KEPT,
    HalfState.CANCELLED: _At.KEPT,
}
_SOURCE_STATES = {
    **_STATES,
    HalfState.SWITCHING: _At.AT_WORK,
    HalfState.CANCELLING: _At.AT_WORK,
    HalfState.HANDED_OVER: _At.TAKEN,
    HalfState.SUCCEEDED: _At.TAKEN,
}
_DESTINATION_STATES = {**_STATES, HalfState.SWITCHING: _At.WHOLE, HalfState.CANCELLING: _At.KEPT}


def decide(source: Word, destination: Word) -> Decision:  # noqa: C901, PLR0911, PLR0912 - one line a case
    """Decide what to do next."""
    match _place(source, _SOURCE_STATES), _place(destination, _DESTINATION_STATES):
        case (_At.UNREADABLE, _) | (_, _At.UNREADABLE):
            return Decision.ASK_AGAIN
        case _At.KEPT, (_At.GIVEN | _At.HALVED):
            return Decision.CONFLICT
        case _At.KEPT, _:
            return Decision.ROLL_BACK
        case _At.HALVED, _:
            return Decision.FOLLOW
        case _, _At.GIVEN:
            return Decision.FINISH
        case _At.SILENT, _:
            return Decision.ASK_AGAIN
        case _At.AT_WORK, _:
            return Decision.FOLLOW
        case _At.LOST, _At.HALVED:
            return Decision.LOST
        case _At.UNKNOWN, _At.HALVED:
            return Decision.ASK_AGAIN
        case ((_At.GIVEN | _At.TAKEN | _At.LOST | _At.UNKNOWN), _At.LOST) | (_At.TAKEN, _At.KEPT):
            return Decision.LOST
        case _At.TAKEN, _At.UNKNOWN:
            return Decision.LET_GO
        case ((_At.GIVEN | _At.TAKEN), _):
            return Decision.FINISH
        case ((_At.LOST | _At.UNKNOWN), _At.WHOLE):
            return Decision.FENCE
        case _At.LOST, (_At.SILENT | _At.AT_WORK):
            return Decision.ASK_AGAIN
        case _At.LOST, _:
            return Decision.LOST
        case _At.UNKNOWN, _At.UNKNOWN:
            return Decision.OVER
        case _At.UNKNOWN, _At.SILENT:
            return Decision.ASK_AGAIN
        case _At.UNKNOWN, (_At.READY | _At.AT_WORK | _At.KEPT):
            return Decision.ROLL_BACK
        case _At.READY, (_At.KEPT | _At.LOST):
            return Decision.ROLL_BACK
        case _:
            return Decision.BEGIN


def has_taken_over(destination: Word) -> bool:
    """Say whether the guest is the destination's by its own word, so that it may run there."""
    return _place(destination, _DESTINATION_STATES) in {_At.GIVEN, _At.HALVED}


def is_halved(word: Word) -> bool:
    """Say whether the guest is the destination's and part of its memory still at the source."""
    return isinstance(word, Half) and word.state is HalfState.POST_COPY


def holds_all(destination: Word) -> bool:
    """Say whether the destination holds the whole guest, which has not run there."""
    return _place(destination, _DESTINATION_STATES) is _At.WHOLE


def _place(word: Word, states: dict[HalfState, _At]) -> _At:
    match word:
        case Silent():
            return _At.SILENT
        case None:
            return _At.UNKNOWN
        case Half(location=Location.NOWHERE):
            return _At.LOST
        case Half():
            return states.get(word.state, _At.UNREADABLE)
