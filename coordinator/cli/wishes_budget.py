"""Options of a move that say what it may cost so that it ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Annotated

from cyclopts import Group, Parameter

from coordinator.cli.link import duration_message
from coordinator.cli.options import Misused, duration_of, one_value
from coordinator.cli.units import DURATION
from ferry.common.v1 import budget_pb2 as pb

CONVERGENCE = Group("Convergence", sort_key=50)


class Policy(Enum):
    """How eager a transfer is to end."""

    SAFE = "safe"
    FAST = "fast"
    MUST_FINISH = "must-finish"


class OnTimeout(Enum):
    """What happens when the time is over; the values are words of the protocol, the names what a user types."""

    ABORT = "ABORT"
    PAUSE = "PAUSE"
    POSTCOPY = "POST_COPY"


MaxDuration = Annotated[
    Fraction | None,
    one_value(
        "TIME", duration_of(DURATION), "Longest time from the start of the transfer to its end, 1s to 168h.", name="--max-duration"
    ),
]


@Parameter(name="*", group=CONVERGENCE)
@dataclass(frozen=True, slots=True)
class BudgetWishes:
    """What a move may cost so that it ends."""

    policy: Annotated[
        Policy,
        Parameter(
            help="safe: the guest is never slowed down, its standstill is short. fast: the shortest move. must-finish: ends inside "
            "--max-duration, at the guest's cost.",
        ),
    ] = Policy.SAFE
    max_duration: MaxDuration = None
    on_timeout: Annotated[
        OnTimeout,
        Parameter(
            help="When --max-duration is over: the guest stays; it stands still for the rest; it goes on at the destination.",
        ),
    ] = OnTimeout.ABORT

    def message(self) -> pb.Budget:
        """Turn the wishes into a message.

        Raises:
            Misused: a promise that could not be kept.
        """
        if self.policy is Policy.MUST_FINISH and self.max_duration is None:
            raise Misused("--policy must-finish needs --max-duration: the time to finish in")
        if self.policy is Policy.MUST_FINISH and self.on_timeout is OnTimeout.ABORT:
            raise Misused(
                "--policy must-finish needs --on-timeout postcopy, or pause, which lets the guest stand still for longer than "
                "--max-downtime"
            )
        return pb.Budget(
            policy=pb.Policy.Value(f"POLICY_{self.policy.name}"),
            max_duration=None if self.max_duration is None else duration_message(self.max_duration),
            on_timeout=pb.TimeoutAction.Value(f"TIMEOUT_ACTION_{self.on_timeout.value}"),
        )


NO_BUDGET = BudgetWishes()
