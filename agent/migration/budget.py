"""What a user allows a transfer to cost so that it ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.errors import InvalidRequest

MIN_DURATION_S: Final = 1.0
MAX_DURATION_S: Final = 7 * 24 * 3600.0


class Policy(Enum):
    """How eager a transfer is to end; docs/convergence.md has the table."""

    SAFE = "safe"
    FAST = "fast"
    MUST_FINISH = "must-finish"


class TimeoutAction(Enum):
    """What happens when the time is over."""

    ABORT = "abort"
    PAUSE = "pause"
    POST_COPY = "postcopy"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a transfer may cost, beside the longest standstill and the bandwidth.

    Attributes:
        max_duration_s: from the start of the transfer to the guest's running on the destination; 0 is without a bound.
        on_timeout: what happens then.
    """

    policy: Policy = Policy.SAFE
    max_duration_s: float = 0.0
    on_timeout: TimeoutAction = TimeoutAction.ABORT

    def __post_init__(self) -> None:
        """Refuse values out of range, and a promise that could not be kept."""
        if self.max_duration_s and not MIN_DURATION_S <= self.max_duration_s <= MAX_DURATION_S:
            raise InvalidRequest(
                f"max-duration: {self.max_duration_s:g} s; {MIN_DURATION_S:g} s to 7 days, or 0 for no bound, is wanted",
                reason="DURATION_OUT_OF_RANGE",
            )
        if self.policy is Policy.MUST_FINISH and self.on_timeout is TimeoutAction.ABORT:
            raise InvalidRequest(
                "policy must-finish and on-timeout abort exclude each other: say on-timeout postcopy, or pause, which lets the "
                "guest stand still for longer than max-downtime",
                reason="OPTIONS_CONFLICT",
            )
        if self.policy is Policy.MUST_FINISH and not self.max_duration_s:
            raise InvalidRequest("policy must-finish needs a max-duration to finish in", reason="OPTIONS_CONFLICT")

    @property
    def may_throttle(self) -> bool:
        """Whether the guest's vCPUs may be slowed down."""
        return self.policy is not Policy.SAFE
