"""The source's half of a migration: its phases and events. What leads from one to the other is `outgoing_steps`.

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
exists once, half on each side. Where it is proved that it never ran at the destination, all of it is here, and it comes back:

    Crossing, Following, Broken -> Refused -> Keeping -> Kept

`Losing` ends what is left here of a guest that its destination has lost, also from `Sent` and
`HandedOver`: what ran there has written to its disks since, so what is here is never run again.

Any phase before `Sent` ends in `Lost` when QEMU ends, unless the destination may hold the whole guest by then. `Switching` is the
written decision: it is saved before `migrate-continue` is sent. A guest is not given to a host whose agent does not answer: the
phase stays what it is until it does, or the transfer is cancelled. From `Sent` on only the destination may run the guest, until its
agent proves that it never did, or an operator fences it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agent.migration import outgoing_effects as do
from agent.migration.machine import Cause
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
    """The guest never ran at the destination and never will; QEMU is brought out of post-copy, and the guest is here.

    Attributes:
        cause: why it comes back.
        newest_is_there: as for `Losing`: an operator said so after the token was given away, which proves nothing about disks.
    """

    cause: Cause
    newest_is_there: bool = False


@dataclass(frozen=True, slots=True)
class Losing:
    """The destination lost the guest; its rest here is being ended, the guest runs nowhere.

    Attributes:
        is_kept_there: whether the destination has stored the definition, so that it goes from here.
        newest_is_there: whether the guest may have run at the destination, so that disks that were copied are newest there.
    """

    cause: Cause
    is_kept_there: bool = False
    newest_is_there: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """QEMU has sent the whole guest; it is the destination's and Resume is repeated until answered."""

    qemu_is_gone: bool = False


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The destination answered Resume; the guest is there, what is left here is a husk."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """The husk is being ended; the guest is at the destination.

    Attributes:
        keeps_definition: whether the definition stays here, marked as moved away: nobody has said that it is kept there.
    """

    keeps_definition: bool = False


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
    """QEMU owns the guest again and it is being put back to what it did before; the guest is here.

    Attributes:
        newest_is_there: as for `Refused`, until the guest runs here again.
    """

    cause: Cause
    newest_is_there: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """Final: the guest is here and does what it did before."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class Lost:
    """Final: the guest's QEMU ended during the migration; the guest runs nowhere.

    Attributes:
        newest_is_there: as for `Losing`.
    """

    cause: Cause
    newest_is_there: bool = False


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
    """Every copy has ended without an error while the guest stood still.

    Attributes:
        destination_answers: whether the destination's agent has answered a moment ago; without it the guest is not given away.
    """

    destination_answers: bool = True


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
class QemuForgot:
    """QEMU ended its migration before `postcopy-active` and does not say so: nobody was given the guest."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class StoodStillTooLong:
    """The guest stands still for longer than is allowed while QEMU sends it."""


@dataclass(frozen=True, slots=True)
class DestinationLost:
    """The destination's agent proves that it had taken the guest over and that its QEMU ended there.

    Attributes:
        is_kept_there: whether the destination has stored the definition.
    """

    cause: Cause
    is_kept_there: bool = False


@dataclass(frozen=True, slots=True)
class QemuAtSwitchover:
    """QEMU stopped the guest and waits in `pre-switchover`.

    Attributes:
        has_mirrors: whether copies of disks have to be settled.
        destination_answers: whether the destination's agent has answered a moment ago; without it the guest is not given away.
    """

    has_mirrors: bool = False
    destination_answers: bool = True


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
class ReleaseRequested:
    """An operator wants this half to end without a coordinator.

    Attributes:
        is_forced: also where that may end the only copy of the guest.
    """

    cause: Cause
    is_forced: bool = False


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
    | QemuForgot
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
    | ReleaseRequested
    | ConfirmRequested
    | GuestRestored
    | HuskEnded
)


Step: TypeAlias = AnyStep[Phase, do.Effect]

FINAL = (Retired, Kept, Lost)
