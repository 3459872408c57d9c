"""Steps of the source's half: what an event leads to in each phase. Pure; `outgoing` draws the whole."""

from __future__ import annotations

from typing import assert_never

from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import outgoing_post_copy as post_copy
from agent.migration.machine import Cause, InvalidTransition
from agent.migration.outgoing_release import release


def step(phase: out.Phase, event: out.Event) -> out.Step:  # noqa: C901, PLR0911, PLR0912 - one line a phase
    """Answer an event.

    Raises:
        InvalidTransition: the event has no meaning in this phase.
    """
    if isinstance(event, out.ReleaseRequested):
        return release(phase, event)
    match phase:
        case out.Begun():
            return _begun(phase, event)
        case out.Mirroring():
            return _mirroring(phase, event)
        case out.Connecting():
            return _connecting(phase, event)
        case out.Transferring():
            return _transferring(phase, event)
        case out.Settling():
            return _settling(phase, event)
        case out.Switching():
            return _switching(phase, event)
        case out.Leaving():
            return _leaving(phase, event)
        case out.Crossing():
            return post_copy.crossing(phase, event)
        case out.Following() | out.Broken():
            return post_copy.in_post_copy(phase, event)
        case out.Refused():
            return post_copy.refused(phase, event)
        case out.Losing():
            return post_copy.losing(phase, event)
        case out.Sent():
            return _sent(phase, event)
        case out.HandedOver():
            return _handed_over(phase, event)
        case out.Retiring():
            return _retiring(phase, event)
        case out.Cancelling():
            return _cancelling(phase, event)
        case out.Keeping():
            return _keeping(phase, event)
        case out.Retired() | out.Kept() | out.Lost():
            raise InvalidTransition(phase, event)
        case _:
            assert_never(phase)


def effects_after_restart(phase: out.Phase) -> tuple[do.Effect, ...]:  # noqa: C901, PLR0911, PLR0912 - one line a phase
    """Return what a driver that starts again in `phase` has to do, once it has told the machine what QEMU says now."""
    match phase:
        case out.Mirroring():
            return (do.StartMirrors(),)
        case out.Leaving():
            return (do.StartPostCopy(),)
        case out.Settling():
            return (do.SettleMirrors(),)
        case out.Switching() | out.Crossing():
            return (do.ContinueMigration(),)
        case out.Following(is_resumed=False):
            return (do.RequestResume(),)
        case out.Broken(is_resumed):
            return (do.EnsureRecovered(),) if is_resumed else (do.RequestResume(), do.EnsureRecovered())
        case out.Refused():
            return (do.EnsureGivenBack(),)
        case out.Losing():
            return (do.EnsureLostEnded(),)
        case out.Sent():
            return (do.RequestResume(),)
        case out.Cancelling():
            return (do.FreeGuest(),)
        case out.Keeping():
            return (do.EnsureGuestRestored(),)
        case out.Retiring():
            return (do.EnsureHuskEnded(),)
        case _:
            return ()


def _begun(phase: out.Begun, event: out.Event) -> out.Step:
    match event:
        case out.PerformRequested(has_disks=True):
            return out.Step(out.Mirroring(), (do.StartMirrors(),))
        case out.PerformRequested():
            return out.Step(out.Connecting(), (do.StartTransfer(),))
        case _:
            return _before_sending(phase, event)


def _mirroring(phase: out.Mirroring, event: out.Event) -> out.Step:
    match event:
        case out.MirrorsReady():
            return out.Step(out.Connecting(), (do.StartTransfer(),))
        case out.QemuGaveUp(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case _:
            return _before_sending(phase, event)


def _before_sending(phase: out.Begun | out.Mirroring, event: out.Event) -> out.Step:
    match event:
        case out.CancelRequested(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case out.PauseRequested():
            return out.Step(phase, (do.StopGuest(),))
        case out.UnpauseRequested():
            return out.Step(phase, (do.StartGuest(),))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause))
        case _:
            raise InvalidTransition(phase, event)


def _connecting(phase: out.Connecting, event: out.Event) -> out.Step:
    match event:
        case out.QemuActive():
            return out.Step(out.Transferring())
        case _:
            return _before_switching(phase, event)


def _transferring(phase: out.Transferring, event: out.Event) -> out.Step:
    match event:
        case out.PostCopyRequested():
            return out.Step(out.Leaving(), (do.StartPostCopy(),))
        case _:
            return _before_switching(phase, event)


def _leaving(phase: out.Leaving, event: out.Event) -> out.Step:
    match event:
        case out.QemuAtSwitchover(destination_answers=False):
            return out.Step(phase)
        case out.QemuAtSwitchover(has_mirrors=True):
            return out.Step(out.Settling(leads_to_post_copy=True), (do.SettleMirrors(),))
        case out.QemuAtSwitchover():
            return out.Step(out.Crossing(), (do.ContinueMigration(),))
        case out.PostCopyRequested():
            return out.Step(phase)
        case out.PauseRequested() | out.UnpauseRequested():
            raise InvalidTransition(phase, event)
        case _:
            return _before_switching(phase, event)


def _before_switching(phase: out.Connecting | out.Transferring | out.Leaving, event: out.Event) -> out.Step:  # noqa: PLR0911 - one line an event
    match event:
        case out.QemuAtSwitchover(destination_answers=False):
            return out.Step(phase)
        case out.QemuAtSwitchover(has_mirrors=True):
            return out.Step(out.Settling(), (do.SettleMirrors(),))
        case out.QemuAtSwitchover():
            return out.Step(out.Switching(), (do.ContinueMigration(),))
        case out.QemuCompleted():
            return out.Step(out.Sent(), (do.RequestResume(),))
        case out.QemuGaveUp(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause))
        case out.CancelRequested(cause):
            return out.Step(out.Cancelling(cause), (do.FreeGuest(),))
        case out.PauseRequested():
            return out.Step(phase, (do.StopGuest(),))
        case out.UnpauseRequested():
            return out.Step(phase, (do.StartGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _settling(phase: out.Settling, event: out.Event) -> out.Step:
    match event:
        case out.MirrorsSettled(destination_answers=False):
            return out.Step(phase)
        case out.MirrorsSettled():
            return out.Step(out.Crossing() if phase.leads_to_post_copy else out.Switching(), (do.ContinueMigration(),))
        case out.QemuAtSwitchover() | out.PostCopyRequested():
            return out.Step(phase)
        case out.QemuGaveUp(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause))
        case out.CancelRequested(cause):
            return out.Step(out.Cancelling(cause), (do.FreeGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _switching(phase: out.Switching, event: out.Event) -> out.Step:
    match event:
        case out.QemuInPostCopy():
            return out.Step(out.Following(), (do.RequestResume(),))
        case out.QemuCompleted():
            return out.Step(out.Sent(), (do.RequestResume(),))
        case out.QemuGaveUp(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case out.QemuExited():
            return _ended_while_switching(event)
        case out.CancelRequested(cause):
            return out.Step(out.Cancelling(cause, was_switching=True), (do.FreeGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _ended_while_switching(event: out.QemuExited) -> out.Step:
    """Give the guest away, since QEMU may have sent all of it and can never run it again.

    Not if it may have taken the guest back unseen: the destination's copy would be older than what the guest wrote to its disks.
    """
    if event.was_watched:
        return out.Step(out.Sent(qemu_is_gone=True), (do.RequestResume(),))
    return out.Step(out.Lost(event.cause))


def _sent(phase: out.Sent, event: out.Event) -> out.Step:  # noqa: PLR0911 - one line an event
    match event:
        case out.ResumeAnswered():
            return out.Step(out.HandedOver())
        case out.ConfirmRequested():
            return out.Step(out.Retiring(), (do.EnsureHuskEnded(),))
        case out.QemuExited():
            return out.Step(out.Sent(qemu_is_gone=True))
        case out.DestinationNeverRan(cause) if phase.qemu_is_gone:
            return out.Step(
                out.Lost(Cause(f"the guest's QEMU on the source ended while the guest changed hands; {cause.text}", "QEMU_ENDED"))
            )
        case out.DestinationLost(cause, is_kept_there):
            return out.Step(out.Losing(cause, is_kept_there, newest_is_there=True), (do.EnsureLostEnded(),))
        case out.Fenced(cause) if phase.qemu_is_gone:
            return out.Step(out.Lost(cause, newest_is_there=True))
        case out.DestinationNeverRan(cause) | out.Fenced(cause):
            return out.Step(out.Keeping(cause), (do.EnsureGuestRestored(),))
        case _:
            raise InvalidTransition(phase, event)


def _handed_over(phase: out.HandedOver, event: out.Event) -> out.Step:
    match event:
        case out.ConfirmRequested():
            return out.Step(out.Retiring(), (do.EnsureHuskEnded(),))
        case out.DestinationLost(cause, is_kept_there):
            return out.Step(out.Losing(cause, is_kept_there, newest_is_there=True), (do.EnsureLostEnded(),))
        case out.QemuExited():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _retiring(phase: out.Retiring, event: out.Event) -> out.Step:
    match event:
        case out.HuskEnded():
            return out.Step(out.Retired())
        case out.QemuExited():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _cancelling(phase: out.Cancelling, event: out.Event) -> out.Step:
    match event:
        case out.QemuGaveUp():
            return out.Step(out.Keeping(phase.cause), (do.EnsureGuestRestored(),))
        case out.QemuCompleted():  # the cancel lost the race, so the guest is the destination's
            return out.Step(out.Sent(), (do.RequestResume(),))
        case out.QemuExited(cause):
            return _ended_while_switching(event) if phase.was_switching else out.Step(out.Lost(cause))
        case out.CancelRequested():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _keeping(phase: out.Keeping, event: out.Event) -> out.Step:
    match event:
        case out.GuestRestored():
            return out.Step(out.Kept(phase.cause))
        case out.QemuExited(cause):
            return out.Step(out.Lost(cause, newest_is_there=phase.newest_is_there))
        case out.CancelRequested():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)
