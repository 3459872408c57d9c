"""What the exit code of `ferry` says.

The codes are an interface: scripts branch on them, docs/operations.md lists them.
"""

from __future__ import annotations

import enum

from coordinator.cli import leaving
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

FINAL_STATES = frozenset(
    {
        pb.Migration.STATE_SUCCEEDED,
        pb.Migration.STATE_FAILED,
        pb.Migration.STATE_CANCELLED,
    }
)


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    """Done as asked."""
    REFUSED = 1
    """Refused or failed; nothing was changed."""
    USAGE = 2
    """The command line itself is wrong."""
    NOT_CARRIED = 3
    """A definition holds an element that Ferry refuses; the text names it with its line."""
    ROLLED_BACK = 4
    """The migration failed or was cancelled; the guest is on the source."""
    LOST = 5
    """The migration failed and the guest's QEMU ended; the guest runs nowhere."""
    UNKNOWN = 6
    """It is not known how it ended, or the guest still waits for a host."""
    INTERRUPTED = leaving.INTERRUPTED
    """Ended by Ctrl-C."""


def of_migration(migration: pb.Migration) -> ExitCode:
    """Say how a migration stands; one that is not final is UNKNOWN."""
    if migration.state == pb.Migration.STATE_SUCCEEDED:
        return ExitCode.DONE
    if migration.state not in FINAL_STATES:
        return ExitCode.UNKNOWN
    match migration.guest_location:
        case pb.Migration.GUEST_LOCATION_SOURCE:
            return ExitCode.ROLLED_BACK
        case pb.Migration.GUEST_LOCATION_NOWHERE | pb.Migration.GUEST_LOCATION_ENDED_AT_DESTINATION:
            return ExitCode.LOST
        case _:
            return ExitCode.UNKNOWN
