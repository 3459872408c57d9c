"""Steps of the source's half in post-copy, from the written decision on: nothing is cancelled, no QEMU is ended. Pure."""

from __future__ import annotations

from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration.machine import InvalidTransition


def crossing(phase: out.Crossing, event: out.Event) -> out.Step:  # noqa: PLR0911 - one line an event
    """The decision for post-copy is written: QEMU says where the guest goes on."""
    match event:
        case out.QemuInPostCopy():
            return out.Step(out.Following(), (do.RequestResume(),))
        case out.QemuLinkLost():
            return out.Step(out.Broken(), (do.RequestResume(), do.EnsureRecovered()))
        case out.QemuCompleted():  # the last pass was quicker
            return out.Step(out.Sent(), (do.RequestResume(),))
        case out.QemuGaveUp(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause))
        case out.StoodStillTooLong():
            return out.Step(phase, (do.CutConnection(),))
        case out.DestinationNeverRan(cause) | out.Fenced(cause) | out.QemuForgot(cause):  # nobody has the token
            return out.Step(out.Refused(cause), (do.EnsureGivenBack(),))
        case _:
            raise InvalidTransition(phase, event)


def in_post_copy(phase: out.Following | out.Broken, event: out.Event) -> out.Step:  # noqa: C901, PLR0911 - one line an event
    """The guest is the destination's, and the rest of its memory follows or is waited for."""
    match event:
        case out.ResumeAnswered():
            return out.Step(type(phase)(is_resumed=True))
        case out.QemuInPostCopy():
            return out.Step(out.Following(phase.is_resumed))
        case out.QemuLinkLost():
            return out.Step(out.Broken(phase.is_resumed), (do.EnsureRecovered(),) if isinstance(phase, out.Following) else ())
        case out.QemuCompleted() if phase.is_resumed:
            return out.Step(out.HandedOver(), (do.RecordPostCopy(),))
        case out.QemuCompleted():  # Resume is still being asked for
            return out.Step(out.Sent())
        case out.QemuGaveUp():  # QEMU runs by itself what may be the destination's: it must not
            return out.Step(phase if phase.is_resumed else out.Sent(), (do.StopGuest(),))
        case out.StoodStillTooLong() if isinstance(phase, out.Following) and not phase.is_resumed:
            return out.Step(phase, (do.CutConnection(),))
        case out.DestinationNeverRan(cause) if not phase.is_resumed:
            return out.Step(out.Refused(cause), (do.EnsureGivenBack(),))
        case out.Fenced(cause) if not phase.is_resumed:
            return out.Step(out.Refused(cause, newest_is_there=True), (do.EnsureGivenBack(),))
        case out.DestinationLost(cause, is_kept_there):
            return out.Step(out.Losing(cause, is_kept_there, newest_is_there=True), (do.EnsureLostEnded(),))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause, newest_is_there=True))
        case _:
            raise InvalidTransition(phase, event)


def refused(phase: out.Refused, event: out.Event) -> out.Step:
    """The destination never ran the guest: it is here once QEMU says that its migration has ended, however that was."""
    match event:
        case out.QemuGaveUp() | out.QemuCompleted():
            return out.Step(out.Keeping(phase.cause, phase.newest_is_there), (do.EnsureGuestRestored(),))
        case out.QemuInPostCopy() | out.QemuLinkLost():
            return out.Step(phase)
        case out.QemuExited():
            return out.Step(out.Lost(phase.cause, newest_is_there=phase.newest_is_there))
        case _:
            raise InvalidTransition(phase, event)


def losing(phase: out.Losing, event: out.Event) -> out.Step:
    """What is left here of a guest that its destination has lost is ended."""
    match event:
        case out.HuskEnded():
            return out.Step(out.Lost(phase.cause, newest_is_there=phase.newest_is_there))
        case out.QemuExited():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)
