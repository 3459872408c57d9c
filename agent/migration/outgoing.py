"""The source's half of a migration, as a pure machine.

    Begun -> Connecting -> Transferring -> Switching -> Sent -> HandedOver -> Retiring -> Retired
      |          |              |             |  ^       |
      |          `--------------+-------------+  |       |
      v                         v                |       |
    Kept <--- Keeping <--- Cancelling ---(lost the race)-+   (also from Sent, when the destination proves it never ran)

With disks to copy they come first, and are made equal for good once the guest stands still:

    Begun -> Mirroring -> Connecting -> Transferring -> Settling -> Switching
                |                                          |
                `-> Keeping                                `-> Cancelling

In post-copy the guest goes first and the rest of its memory follows:

    Transferring -> Leaving -> Crossing -> Following -> HandedOver
                                            |   ^
                                            v   |
                                            Broken        (the connection was lost; it is made anew)

From `Crossing`, which is the written decision, to the source's `completed` nothing is cancelled and no QEMU is ended: the guest
exists once, half on each side. `Losing` ends what is left here of a guest that its destination has lost.

Any phase before `Sent` ends in `Lost` when QEMU ends, unless the destination may hold the whole guest by then. `Switching` is the
written decision: it is saved before `migrate-continue` is sent. From `Sent` on only the destination may run the guest, until its
agent proves that it never did, or an operator fences it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from agent.migration import outgoing_effects as do
from agent.migration.machine import Cause, InvalidTransition
from agent.migration.machine import Step as AnyStep


# phases
@dataclass(frozen=True, slots=True)
class Begun:
    """The job lock is held and nothing was sent; the guest is here."""


@dataclass(frozen=True, slots=True)
class Mirroring:
    """Disks are being copied and no memory was sent; the guest is here."""


@dataclass(frozen=True, slots=True)
class Connecting:
    """QEMU was told to migrate and has not sent memory yet; the guest is here."""


@dataclass(frozen=True, slots=True)
class Transferring:
    """Memory is on its way; the guest is here."""


@dataclass(frozen=True, slots=True)
class Settling:
    """The guest stands still and the copies of its disks are being ended, both sides equal; the guest is here.

    Attributes:
        leads_to_post_copy: whether memory follows the guest.
    """

    leads_to_post_copy: bool = False


@dataclass(frozen=True, slots=True)
class Switching:
    """The decision is written and device state is on its way; the guest stands still, QEMU's report decides where it goes on."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Post-copy was ordered and QEMU stops the guest at the next chance; the guest is here."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """The decision for post-copy is written; the guest stands still, QEMU's report decides where it goes on."""


@dataclass(frozen=True, slots=True)
class Following:
    """QEMU is in post-copy: the guest is the destination's, and the rest of its memory follows."""

    is_resumed: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection was lost in post-copy; the guest is the destination's and waits for memory that is here."""

    is_resumed: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The guest never ran at the destination, whose QEMU is gone; QEMU's report decides whether it is here."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Losing:
    """The destination lost the guest in post-copy; its rest here is being ended, the guest runs nowhere."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Sent:
    """QEMU has sent the whole guest; it is the destination's and Resume is repeated until answered."""

    qemu_is_gone: bool = False


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The destination answered Resume; the guest is there, what is left here is a husk."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """The husk is being ended; the guest is at the destination."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Final: the guest is at the destination, nothing is left here."""


@dataclass(frozen=True, slots=True)
class Cancelling:
    """The transfer is being stopped; the guest is here, unless it was switching and the cancel loses the race."""

    cause: Cause
    was_switching: bool = False


@dataclass(frozen=True, slots=True)
class Keeping:
    """QEMU owns the guest again and it is being put back to what it did before; the guest is here."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Kept:
    """Final: the guest is here and does what it did before."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Lost:
    """Final: the guest's QEMU ended during the migration; the guest runs nowhere."""

    cause: Cause


Phase: TypeAlias = (
    Begun
    | Mirroring
    | Connecting
    | Transferring
    | Settling
    | Switching
    | Leaving
    | Crossing
    | Following
    | Broken
    | Refused
    | Losing
    | Sent
    | HandedOver
    | Retiring
    | Retired
    | Cancelling
    | Keeping
    | Kept
    | Lost
)


# events
@dataclass(frozen=True, slots=True)
class PerformRequested:
    """The destination is ready and the coordinator wants the transfer, after that of disks where there are some to copy."""

    has_disks: bool = False


@dataclass(frozen=True, slots=True)
class MirrorsReady:
    """Every disk that is copied is equal on both sides, and stays so."""


@dataclass(frozen=True, slots=True)
class MirrorsSettled:
    """Every copy has ended without an error while the guest stood still."""


@dataclass(frozen=True, slots=True)
class QemuActive:
    """QEMU reports that it sends memory."""


@dataclass(frozen=True, slots=True)
class PostCopyRequested:
    """The guest is to go now, and the rest of its memory after it."""


@dataclass(frozen=True, slots=True)
class QemuInPostCopy:
    """QEMU reports `postcopy-active`: it can never run the guest again."""


@dataclass(frozen=True, slots=True)
class QemuLinkLost:
    """QEMU reports `postcopy-paused`: the connection is gone, and nothing else."""


@dataclass(frozen=True, slots=True)
class StoodStillTooLong:
    """The guest stands still for longer than is allowed while QEMU sends it."""


@dataclass(frozen=True, slots=True)
class DestinationLost:
    """The destination's agent proves that the guest's QEMU ended there."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class QemuAtSwitchover:
    """QEMU stopped the guest and waits in `pre-switchover`; `has_mirrors` tells that copies of disks have to be settled."""

    has_mirrors: bool = False


@dataclass(frozen=True, slots=True)
class QemuCompleted:
    """QEMU reports `completed`: the destination has acknowledged the whole guest."""


@dataclass(frozen=True, slots=True)
class QemuGaveUp:
    """QEMU reports `failed` or `cancelled`, or refused to start: it owns the guest again."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class QemuExited:
    """The process of QEMU ended.

    Attributes:
        cause: how, in words.
        was_watched: whether its events were followed to the end, so that it cannot have taken the guest back unseen.
    """

    cause: Cause
    was_watched: bool = True


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the guest to stay, or a watch found that it must."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """The user wants the vCPUs stopped for the rest of the transfer."""


@dataclass(frozen=True, slots=True)
class UnpauseRequested:
    """The user wants vCPUs that were stopped for the transfer to go on."""


@dataclass(frozen=True, slots=True)
class ResumeAnswered:
    """The destination says that the guest goes on there."""


@dataclass(frozen=True, slots=True)
class DestinationNeverRan:
    """The destination's agent proves that the guest never ran there and that its QEMU is gone."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Fenced:
    """An operator says that the guest does not and will not run at the destination."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class ConfirmRequested:
    """The coordinator has the destination's word that the guest is kept there."""


@dataclass(frozen=True, slots=True)
class GuestRestored:
    """The guest does again what it did before the migration."""


@dataclass(frozen=True, slots=True)
class HuskEnded:
    """The source's QEMU is gone and the VM is forgotten here."""


Event: TypeAlias = (
    PerformRequested
    | MirrorsReady
    | MirrorsSettled
    | QemuActive
    | PostCopyRequested
    | QemuInPostCopy
    | QemuLinkLost
    | StoodStillTooLong
    | DestinationLost
    | QemuAtSwitchover
    | QemuCompleted
    | QemuGaveUp
    | QemuExited
    | CancelRequested
    | PauseRequested
    | UnpauseRequested
    | ResumeAnswered
    | DestinationNeverRan
    | Fenced
    | ConfirmRequested
    | GuestRestored
    | HuskEnded
)


Step: TypeAlias = AnyStep[Phase, do.Effect]

FINAL = (Retired, Kept, Lost)


def step(phase: Phase, event: Event) -> Step:  # noqa: C901, PLR0911, PLR0912 - one line a phase
    """Answer an event.

    Raises:
        InvalidTransition: the event has no meaning in this phase.
    """
    match phase:
        case Begun():
            return _begun(phase, event)
        case Mirroring():
            return _mirroring(phase, event)
        case Connecting():
            return _connecting(phase, event)
        case Transferring():
            return _transferring(phase, event)
        case Settling():
            return _settling(phase, event)
        case Switching():
            return _switching(phase, event)
        case Leaving():
            return _leaving(phase, event)
        case Crossing():
            return _crossing(phase, event)
        case Following() | Broken():
            return _in_post_copy(phase, event)
        case Refused():
            return _refused(phase, event)
        case Losing():
            return _losing(phase, event)
        case Sent():
            return _sent(phase, event)
        case HandedOver():
            return _handed_over(phase, event)
        case Retiring():
            return _retiring(phase, event)
        case Cancelling():
            return _cancelling(phase, event)
        case Keeping():
            return _keeping(phase, event)
        case Retired() | Kept() | Lost():
            raise InvalidTransition(phase, event)
        case _:
            assert_never(phase)


def effects_after_restart(phase: Phase) -> tuple[do.Effect, ...]:  # noqa: C901, PLR0911 - one line a phase
    """Return what a driver that starts again in `phase` has to do, once it has told the machine what QEMU says now."""
    match phase:
        case Mirroring():
            return (do.StartMirrors(),)
        case Leaving():
            return (do.StartPostCopy(),)
        case Settling():
            return (do.SettleMirrors(),)
        case Switching() | Crossing():
            return (do.ContinueMigration(),)
        case Following(is_resumed=False):
            return (do.RequestResume(),)
        case Broken(is_resumed):
            return (do.EnsureRecovered(),) if is_resumed else (do.RequestResume(), do.EnsureRecovered())
        case Losing():
            return (do.EnsureLostEnded(),)
        case Sent():
            return (do.RequestResume(),)
        case Cancelling():
            return (do.FreeGuest(),)
        case Keeping():
            return (do.EnsureGuestRestored(),)
        case Retiring():
            return (do.EnsureHuskEnded(),)
        case _:
            return ()


def _begun(phase: Begun, event: Event) -> Step:
    match event:
        case PerformRequested(has_disks=True):
            return Step(Mirroring(), (do.StartMirrors(),))
        case PerformRequested():
            return Step(Connecting(), (do.StartTransfer(),))
        case _:
            return _before_sending(phase, event)


def _mirroring(phase: Mirroring, event: Event) -> Step:
    match event:
        case MirrorsReady():
            return Step(Connecting(), (do.StartTransfer(),))
        case QemuGaveUp(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case _:
            return _before_sending(phase, event)


def _before_sending(phase: Begun | Mirroring, event: Event) -> Step:
    match event:
        case CancelRequested(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case PauseRequested():
            return Step(phase, (do.StopGuest(),))
        case UnpauseRequested():
            return Step(phase, (do.StartGuest(),))
        case QemuExited(cause):
            return Step(Lost(cause))
        case _:
            raise InvalidTransition(phase, event)


def _connecting(phase: Connecting, event: Event) -> Step:
    match event:
        case QemuActive():
            return Step(Transferring())
        case _:
            return _before_switching(phase, event)


def _transferring(phase: Transferring, event: Event) -> Step:
    match event:
        case PostCopyRequested():
            return Step(Leaving(), (do.StartPostCopy(),))
        case _:
            return _before_switching(phase, event)


def _leaving(phase: Leaving, event: Event) -> Step:
    match event:
        case QemuAtSwitchover(has_mirrors=True):
            return Step(Settling(leads_to_post_copy=True), (do.SettleMirrors(),))
        case QemuAtSwitchover():
            return Step(Crossing(), (do.ContinueMigration(),))
        case PostCopyRequested():
            return Step(phase)
        case PauseRequested() | UnpauseRequested():
            raise InvalidTransition(phase, event)
        case _:
            return _before_switching(phase, event)


def _crossing(phase: Crossing, event: Event) -> Step:
    match event:
        case QemuInPostCopy():
            return Step(Following(), (do.RequestResume(),))
        case QemuLinkLost():
            return Step(Broken(), (do.RequestResume(), do.EnsureRecovered()))
        case QemuCompleted():  # the last pass was quicker
            return Step(Sent(), (do.RequestResume(),))
        case QemuGaveUp(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case QemuExited(cause):
            return Step(Lost(cause))
        case StoodStillTooLong():
            return Step(phase, (do.CutConnection(),))
        case _:
            raise InvalidTransition(phase, event)


def _in_post_copy(phase: Following | Broken, event: Event) -> Step:  # noqa: C901, PLR0911 - one line an event
    match event:
        case ResumeAnswered():
            return Step(type(phase)(is_resumed=True))
        case QemuInPostCopy():
            return Step(Following(phase.is_resumed))
        case QemuLinkLost():
            return Step(Broken(phase.is_resumed), (do.EnsureRecovered(),) if isinstance(phase, Following) else ())
        case QemuCompleted() if phase.is_resumed:
            return Step(HandedOver(), (do.RecordPostCopy(),))
        case QemuCompleted():  # Resume is still being asked for
            return Step(Sent())
        case QemuGaveUp():  # QEMU runs by itself what may be the destination's: it must not
            return Step(phase if phase.is_resumed else Sent(), (do.StopGuest(),))
        case StoodStillTooLong() if isinstance(phase, Following) and not phase.is_resumed:
            return Step(phase, (do.CutConnection(),))
        case DestinationNeverRan(cause) if not phase.is_resumed:
            return _never_ran(phase, cause)
        case DestinationLost(cause):
            return Step(Losing(cause), (do.EnsureLostEnded(),))
        case QemuExited(cause):
            return Step(Lost(cause))
        case _:
            raise InvalidTransition(phase, event)


def _never_ran(phase: Following | Broken, cause: Cause) -> Step:
    """QEMU 7.2 reports `postcopy-active` before it sends the devices, and takes the guest back when that fails."""
    if isinstance(phase, Following):
        return Step(Refused(cause))
    return Step(Losing(cause), (do.EnsureLostEnded(),))


def _refused(phase: Refused, event: Event) -> Step:
    match event:
        case QemuGaveUp() | QemuCompleted():
            return Step(Keeping(phase.cause), (do.EnsureGuestRestored(),))
        case QemuLinkLost():
            return Step(Losing(phase.cause), (do.EnsureLostEnded(),))
        case QemuExited():
            return Step(Lost(phase.cause))
        case _:
            raise InvalidTransition(phase, event)


def _losing(phase: Losing, event: Event) -> Step:
    match event:
        case HuskEnded():
            return Step(Lost(phase.cause))
        case QemuExited():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _before_switching(phase: Connecting | Transferring | Leaving, event: Event) -> Step:  # noqa: PLR0911 - one line an event
    match event:
        case QemuAtSwitchover(has_mirrors=True):
            return Step(Settling(), (do.SettleMirrors(),))
        case QemuAtSwitchover():
            return Step(Switching(), (do.ContinueMigration(),))
        case QemuCompleted():
            return Step(Sent(), (do.RequestResume(),))
        case QemuGaveUp(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case QemuExited(cause):
            return Step(Lost(cause))
        case CancelRequested(cause):
            return Step(Cancelling(cause), (do.FreeGuest(),))
        case PauseRequested():
            return Step(phase, (do.StopGuest(),))
        case UnpauseRequested():
            return Step(phase, (do.StartGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _settling(phase: Settling, event: Event) -> Step:
    match event:
        case MirrorsSettled():
            return Step(Crossing() if phase.leads_to_post_copy else Switching(), (do.ContinueMigration(),))
        case QemuAtSwitchover() | PostCopyRequested():
            return Step(phase)
        case QemuGaveUp(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case QemuExited(cause):
            return Step(Lost(cause))
        case CancelRequested(cause):
            return Step(Cancelling(cause), (do.FreeGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _switching(phase: Switching, event: Event) -> Step:
    match event:
        case QemuInPostCopy():
            return Step(Following(), (do.RequestResume(),))
        case QemuCompleted():
            return Step(Sent(), (do.RequestResume(),))
        case QemuGaveUp(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case QemuExited():
            return _ended_while_switching(event)
        case CancelRequested(cause):
            return Step(Cancelling(cause, was_switching=True), (do.FreeGuest(),))
        case _:
            raise InvalidTransition(phase, event)


def _ended_while_switching(event: QemuExited) -> Step:
    """Give the guest away, since QEMU may have sent all of it and can never run it again.

    Not if it may have taken the guest back unseen: the destination's copy would be older than what the guest wrote to its disks.
    """
    if event.was_watched:
        return Step(Sent(qemu_is_gone=True), (do.RequestResume(),))
    return Step(Lost(event.cause))


def _sent(phase: Sent, event: Event) -> Step:
    match event:
        case ResumeAnswered():
            return Step(HandedOver())
        case ConfirmRequested():
            return Step(Retiring(), (do.EnsureHuskEnded(),))
        case QemuExited():
            return Step(Sent(qemu_is_gone=True))
        case DestinationNeverRan(cause) if phase.qemu_is_gone:
            return Step(
                Lost(Cause(f"the guest's QEMU on the source ended while the guest changed hands; {cause.text}", "QEMU_ENDED"))
            )
        case Fenced(cause) if phase.qemu_is_gone:
            return Step(Lost(cause))
        case DestinationNeverRan(cause) | Fenced(cause):
            return Step(Keeping(cause), (do.EnsureGuestRestored(),))
        case _:
            raise InvalidTransition(phase, event)


def _handed_over(phase: HandedOver, event: Event) -> Step:
    match event:
        case ConfirmRequested():
            return Step(Retiring(), (do.EnsureHuskEnded(),))
        case QemuExited():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _retiring(phase: Retiring, event: Event) -> Step:
    match event:
        case HuskEnded():
            return Step(Retired())
        case QemuExited():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _cancelling(phase: Cancelling, event: Event) -> Step:
    match event:
        case QemuGaveUp():
            return Step(Keeping(phase.cause), (do.EnsureGuestRestored(),))
        case QemuCompleted():  # the cancel lost the race, so the guest is the destination's
            return Step(Sent(), (do.RequestResume(),))
        case QemuExited(cause):
            return _ended_while_switching(event) if phase.was_switching else Step(Lost(cause))
        case CancelRequested():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)


def _keeping(phase: Keeping, event: Event) -> Step:
    match event:
        case GuestRestored():
            return Step(Kept(phase.cause))
        case QemuExited(cause):
            return Step(Lost(cause))
        case CancelRequested():
            return Step(phase)
        case _:
            raise InvalidTransition(phase, event)
