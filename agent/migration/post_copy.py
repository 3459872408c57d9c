"""What is wished of post-copy: the guest goes first, and the rest of its memory after it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.errors import InvalidRequest


class When(Enum):
    """When post-copy begins."""

    NEVER = "never"
    ALLOWED = "allowed"
    IMMEDIATELY = "immediately"
    AFTER_FIRST_PASS = "after-first-pass"  # noqa: S105 - no word of a secret


@dataclass(frozen=True, slots=True)
class PostCopy:
    """What the user wishes of post-copy.

    Attributes:
        when: ALLOWED waits for a command, or for whoever steers the migration.
        bandwidth_bytes_per_second: of what is pushed in post-copy; 0 is without a bound.
        preempt: pages that the guest waits for have a connection of their own.
    """

    when: When = When.NEVER
    bandwidth_bytes_per_second: int = 0
    preempt: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range, and wishes for what is not to happen."""
        if self.bandwidth_bytes_per_second < 0:
            raise InvalidRequest(
                f"postcopy-bandwidth: {self.bandwidth_bytes_per_second} bytes per second; 0 (no bound) or more is wanted",
                reason="BANDWIDTH_OUT_OF_RANGE",
            )
        if self.when is When.NEVER and (self.preempt or self.bandwidth_bytes_per_second):
            named = "postcopy-preempt" if self.preempt else "postcopy-bandwidth"
            raise InvalidRequest(f"{named} without postcopy: post-copy would never begin", reason="OPTIONS_CONFLICT")

    @property
    def is_allowed(self) -> bool:
        """Whether both QEMUs have to be able to."""
        return self.when is not When.NEVER

    @property
    def capabilities(self) -> tuple[str, ...]:
        """QEMU's names of what both sides need. Source: qapi/migration.json, MigrationCapability."""
        if not self.is_allowed:
            return ()
        return ("postcopy-ram", "postcopy-preempt") if self.preempt else ("postcopy-ram",)
