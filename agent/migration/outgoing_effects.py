"""What the source's machine wants done to QEMU and the destination; each is safe to do twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class StartMirrors:
    """Open the way to the destination and copy disks over it; report MirrorsReady, a failure as QemuGaveUp or CancelRequested."""


@dataclass(frozen=True, slots=True)
class SettleMirrors:
    """End the copies, the guest standing still; report MirrorsSettled, or CancelRequested when one is not complete."""


@dataclass(frozen=True, slots=True)
class StartTransfer:
    """Open the way to the destination, set capabilities and parameters, `migrate`; a failure comes back as QemuGaveUp."""


@dataclass(frozen=True, slots=True)
class ContinueMigration:
    """`migrate-continue`, if QEMU still waits."""


@dataclass(frozen=True, slots=True)
class StopGuest:
    """`stop` the vCPUs and say so."""


@dataclass(frozen=True, slots=True)
class StartGuest:
    """`cont` the vCPUs that were stopped for the transfer, if QEMU does not switch over by now."""


@dataclass(frozen=True, slots=True)
class FreeGuest:
    """Stop the transfer, by `migrate_cancel`, else the cut, else `yank`, until QEMU reports how it ended."""


@dataclass(frozen=True, slots=True)
class EnsureGuestRestored:
    """Make the guest do what it did before; report GuestRestored."""


@dataclass(frozen=True, slots=True)
class RequestResume:
    """Send Resume with the token until the destination answers."""


@dataclass(frozen=True, slots=True)
class EnsureHuskEnded:
    """End the source's QEMU and forget the VM; report HuskEnded."""


@dataclass(frozen=True, slots=True)
class StartPostCopy:
    """`migrate-start-postcopy`; QEMU stops in `pre-switchover` first."""


@dataclass(frozen=True, slots=True)
class CutConnection:
    """End QEMU's connections from outside, so that it says what became of the guest."""


@dataclass(frozen=True, slots=True)
class EnsureRecovered:
    """Connect to the destination anew, until QEMU reports `postcopy-active` again."""


@dataclass(frozen=True, slots=True)
class EnsureGivenBack:
    """Bring QEMU out of a post-copy whose guest never ran at the destination, until it reports how it ended."""


@dataclass(frozen=True, slots=True)
class RecordPostCopy:
    """Read the figures of a post-copy that is over, and make its span."""


@dataclass(frozen=True, slots=True)
class EnsureLostEnded:
    """End the source's QEMU, whose guest was lost at the destination; keep the definition; report HuskEnded."""


Effect: TypeAlias = (
    StartMirrors
    | SettleMirrors
    | StartTransfer
    | ContinueMigration
    | StopGuest
    | StartGuest
    | FreeGuest
    | EnsureGuestRestored
    | RequestResume
    | EnsureHuskEnded
    | StartPostCopy
    | CutConnection
    | EnsureRecovered
    | EnsureGivenBack
    | RecordPostCopy
    | EnsureLostEnded
)
