"""The destination's half of a migration, as a pure machine.

    Reserved -> Listening -> Loading -> Loaded -> Resuming -> Running -> Finished
        |           |           |         |          |          |
        `-----------+-----------+---------'          `----------+-> KeepingDefinition -> Lost
                    v
                 Undoing -> Abandoned

In post-copy the guest comes before its memory is all here:

    Loading -> Arrived -> Entering -> Filling -> Running
                  |          |           |
                  v          `-----------+-> Ending -> Lost     (the source's QEMU ended with memory that is missing here)
               Undoing

The guest may run here from `Resuming` or `Entering` on, which is saved before `cont` is sent; until then this half can be undone
without harm, and `Abandoned` is the proof that the guest never ran here and that its QEMU is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from agent.migration.machine import Cause, InvalidTransition
from agent.migration.machine import Step as AnyStep


# phases
@dataclass(frozen=True, slots=True)
class Reserved:
    """The name, the lock and the ports are taken and QEMU starts; the guest is at the source."""


@dataclass(frozen=True, slots=True)
class Listening:
    """QEMU waits for the source; the guest is at the source."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Memory comes in; the guest is at the source."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The whole guest is here and stands still; it may be run only with the source's token."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """The guest is here without all of its memory and stands still; it may be run only with the source's token."""


@dataclass(frozen=True, slots=True)
class Entering:
    """The source gave the guest away in post-copy; from here on it may run here."""

    keep_paused: bool = False


@dataclass(frozen=True, slots=True)
class Filling:
    """The guest is here, and the rest of its memory follows."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is here of the guest is being ended: the source's QEMU ended with memory that is missing here, or an operator let go."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Resuming:
    """The source gave the guest away; from here on it may run here."""

    keep_paused: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """The guest is here: it runs, or stands still because its user had paused it, or has ended by itself."""


@dataclass(frozen=True, slots=True)
class KeepingDefinition:
    """The guest's QEMU ended here after it was taken over; its definition is being stored here, where its newest disks are."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Finished:
    """Final: the guest is here and kept."""


@dataclass(frozen=True, slots=True)
class Undoing:
    """What Prepare made is being removed; the guest is at the source."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Final: the guest never ran here and its QEMU is gone; the guest is at the source."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Lost:
    """Final: QEMU ended here after the guest was taken over; the guest runs nowhere.

    Attributes:
        is_kept: whether its definition was stored here.
    """

    cause: Cause
    is_kept: bool = False


Phase: TypeAlias = (
    Reserved
    | Listening
    | Loading
    | Loaded
    | Arrived
    | Entering
    | Filling
    | Ending
    | Resuming
    | Running
    | KeepingDefinition
    | Finished
    | Undoing
    | Abandoned
    | Lost
)


# events
@dataclass(frozen=True, slots=True)
class QemuListening:
    """QEMU listens for the source."""


@dataclass(frozen=True, slots=True)
class QemuActive:
    """QEMU reports that memory comes in."""


@dataclass(frozen=True, slots=True)
class GuestArrived:
    """QEMU has the guest's devices in post-copy and holds it stopped."""


@dataclass(frozen=True, slots=True)
class QemuLoaded:
    """QEMU reports `completed`, with the guest stopped."""


@dataclass(frozen=True, slots=True)
class QemuGaveUp:
    """QEMU reports `failed`."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class QemuExited:
    """The process of QEMU ended.

    Attributes:
        by_guest: whether the guest itself ended it: then it has been here, and nothing of it is missed.
        never_ran: whether QEMU is known to have refused every `cont`.
    """

    cause: Cause
    by_guest: bool = False
    never_ran: bool = False


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """The right token came, or an operator fenced the source."""

    keep_paused: bool = False


@dataclass(frozen=True, slots=True)
class GuestRuns:
    """The guest does here what it did at the source."""


@dataclass(frozen=True, slots=True)
class FinishRequested:
    """The coordinator knows that the guest is here, and the VM is stored as this host's own."""


@dataclass(frozen=True, slots=True)
class AbandonRequested:
    """The migration will not happen.

    Attributes:
        source_has_ended: the source's half is over: it keeps the guest, or its QEMU has ended.
        may_come_halved: post-copy is allowed, so the guest may be coming without QEMU having said so yet.
    """

    cause: Cause
    source_has_ended: bool = False
    may_come_halved: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """An operator wants this half to end without a coordinator.

    Attributes:
        is_forced: also where that may end the only copy of the guest.
        may_come_halved: as for an abandon.
    """

    cause: Cause
    is_forced: bool = False
    may_come_halved: bool = False


@dataclass(frozen=True, slots=True)
class DefinitionKept:
    """The VM is stored as this host's own, unless it is to be transient.

    Attributes:
        is_kept: false where nothing is left of it to be stored.
    """

    is_kept: bool = True


@dataclass(frozen=True, slots=True)
class Undone:
    """QEMU is gone and nothing is left of Prepare.

    Attributes:
        never_ran: whether QEMU is known to have refused every `cont`.
    """

    never_ran: bool = False


Event: TypeAlias = (
    QemuListening
    | QemuActive
    | GuestArrived
    | QemuLoaded
    | QemuGaveUp
    | QemuExited
    | ResumeRequested
    | GuestRuns
    | FinishRequested
    | AbandonRequested
    | ReleaseRequested
    | DefinitionKept
    | Undone
)


# effects, each safe to run twice
@dataclass(frozen=True, slots=True)
class EnsureGuestRuns:
    """`cont` until the guest runs, or nothing when it stays paused; report GuestRuns."""


@dataclass(frozen=True, slots=True)
class EnsureUndone:
    """End QEMU and remove what Prepare made; report Undone."""


@dataclass(frozen=True, slots=True)
class EnsureDefinitionKept:
    """Store the VM as this host's own, as the source had it; report DefinitionKept."""


@dataclass(frozen=True, slots=True)
class EnsureFinished:
    """Make the VM this host's own as Finish does; report FinishRequested."""


Effect: TypeAlias = EnsureGuestRuns | EnsureUndone | EnsureDefinitionKept | EnsureFinished
Step: TypeAlias = AnyStep[Phase, Effect]

FINAL = (Finished, Abandoned, Lost)


def step(phase: Phase, event: Event) -> Step:  # noqa: C901, PLR0911 - one line a phase
    """Answer an event.

    Raises:
        InvalidTransition: the event has no meaning in this phase.
    """
    match phase:
        case Reserved() | Listening() | Loading():
            return _before_loaded(phase, event)
        case Loaded():
            return _loaded(phase, event)
        case Arrived():
            return _arrived(phase, event)
        case Entering() | Filling():
            return _in_post_copy(phase, event)
        case Ending():
            return _ending(phase, event)
        case Resuming():
            return _resuming(phase, event)
        case Running():
            return _running(phase, event)
        case KeepingDefinition():
            return _keeping_definition(phase, event)
        case Undoing():
            return _undoing(phase, event)
        case Finished() | Abandoned() | Lost():
            raise InvalidTransition(phase, event)
        case _:
            assert_never(phase)


def effects_after_restart(phase: Phase) -> tuple[Effect, ...]:
    """Return what a driver that starts again in `phase` has to do, once it has told the machine what QEMU says now."""
    match phase:
        case Resuming() | Entering():
            return (EnsureGuestRuns(),)
        case Undoing() | Ending():
            return (EnsureUndone(),)
        case KeepingDefinition():
            return (EnsureDefinitionKept(),)
        case _:
            return ()


def _before_loaded(phase: Reserved | Listening | Loading, event: Event) -> Step:
    match phase, event:
        case Reserved(), QemuListening():
            return Step(Listening())
        case Listening(), QemuActive():
            return Step(Loading())
        case ((Listening() | Loading()), QemuLoaded()):
            return Step(Loaded())
        case ((Listening() | Loading()), GuestArrived()):
            return Step(Arrived())
        case (
            (Listening() | Loading()),
            AbandonRequested(source_has_ended=False, may_come_halved=True)
            | ReleaseRequested(is_forced=False, may_come_halved=True),
        ):
            raise InvalidTransition(phase, event)
        case _, ReleaseRequested(cause):
            return Step(Undoing(cause), (EnsureUndone(),))
        case _:
            return _undo_or_refuse(phase, event)


def _loaded(phase: Loaded, event: Event) -> Step:
    match event:
        case ResumeRequested(keep_paused):
            return Step(Resuming(keep_paused), (EnsureGuestRuns(),))
        case ReleaseRequested(cause, is_forced=True):
            return Step(Undoing(cause), (EnsureUndone(),))
        case _:
            return _undo_or_refuse(phase, event)


def _arrived(phase: Arrived, event: Event) -> Step:
    match event:
        case ResumeRequested(keep_paused):
            return Step(Entering(keep_paused), (EnsureGuestRuns(),))
        case QemuLoaded():
            return Step(Loaded())
        case AbandonRequested(source_has_ended=False):  # the source's QEMU may have given up its own half
            raise InvalidTransition(phase, event)
        case ReleaseRequested(cause, is_forced=True):
            return Step(Undoing(cause), (EnsureUndone(),))
        case _:
            return _undo_or_refuse(phase, event)


def _in_post_copy(phase: Entering | Filling, event: Event) -> Step:  # noqa: PLR0911 - one line an event
    match phase, event:
        case Entering(), QemuExited(cause, never_ran=True):
            return Step(Undoing(cause), (EnsureUndone(),))
        case _, QemuExited(cause):
            return Step(Lost(cause))
        case _, AbandonRequested(cause, source_has_ended=True) | ReleaseRequested(cause, is_forced=True):
            return Step(Ending(cause), (EnsureUndone(),))
        case _, ResumeRequested():
            return Step(phase)
        case _, GuestRuns():
            return Step(Filling())
        case Entering(keep_paused), QemuLoaded():
            return Step(Resuming(keep_paused))
        case Filling(), QemuLoaded():
            return Step(Running())
        case _:
            raise InvalidTransition(phase, event)


def _ending(phase: Ending, event: Event) -> Step:
    match event:
        case Undone(never_ran=True):
            return Step(Abandoned(phase.cause))
        case Undone():
            return Step(Lost(phase.cause))
        case QemuGaveUp() | QemuExited() | AbandonRequested() | ReleaseRequested():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _undo_or_refuse(phase: Phase, event: Event) -> Step:
    match event:
        case QemuGaveUp(cause) | QemuExited(cause) | AbandonRequested(cause):
            return Step(Undoing(cause), (EnsureUndone(),))
        case _:
            raise InvalidTransition(phase, event)


def _resuming(phase: Resuming, event: Event) -> Step:
    match event:
        case GuestRuns():
            return Step(Running())
        case ResumeRequested():
            return Step(phase)
        case QemuExited(cause, never_ran=True):
            return Step(Undoing(cause), (EnsureUndone(),))
        case QemuExited(cause):
            return Step(KeepingDefinition(cause), (EnsureDefinitionKept(),))
        case ReleaseRequested(cause, is_forced=True):
            return Step(Ending(cause), (EnsureUndone(),))
        case _:
            raise InvalidTransition(phase, event)


def _running(phase: Running, event: Event) -> Step:
    match event:
        case FinishRequested():
            return Step(Finished())
        case ResumeRequested() | GuestRuns():
            return Step(phase)
        case QemuExited(by_guest=True):  # it came, ran, and ended by itself: its definition is still to be kept
            return Step(phase)
        case QemuExited(cause):
            return Step(KeepingDefinition(cause), (EnsureDefinitionKept(),))
        case ReleaseRequested():
            return Step(phase, (EnsureFinished(),))
        case _:
            raise InvalidTransition(phase, event)


def _keeping_definition(phase: KeepingDefinition, event: Event) -> Step:
    match event:
        case DefinitionKept(is_kept):
            return Step(Lost(phase.cause, is_kept))
        case QemuExited() | AbandonRequested() | ReleaseRequested():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _undoing(phase: Undoing, event: Event) -> Step:
    match event:
        case Undone():
            return Step(Abandoned(phase.cause))
        case QemuGaveUp() | QemuExited() | AbandonRequested() | ReleaseRequested():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)
