"""What the convergence engine decided, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.cli.plain import seconds
from coordinator.cli.screen import columns
from coordinator.cli.units import format_bytes, format_duration, format_rate
from ferry.common.v1 import budget_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

_WORDS: Final = {
    pb.Decision.CHOICE_RAISE_DOWNTIME: "may stand still for up to {limit}: passes shrink no further",
    pb.Decision.CHOICE_HOLD: "no switch-over for now: the network is much slower than it was",
    pb.Decision.CHOICE_RELEASE: "may stand still for up to {limit} again: the network is steady",
    pb.Decision.CHOICE_THROTTLE: "the guest is slowed down: it changes memory as fast as it is sent",
    pb.Decision.CHOICE_POST_COPY: "the guest goes on at the destination by post-copy",
    pb.Decision.CHOICE_PAUSE: "the guest stands still for the rest",
    pb.Decision.CHOICE_ABORT: "given up",
    pb.Decision.CHOICE_BOUNDS: "bounds changed by a client, may stand still for up to {limit}",
}


def decision_words(decision: pb.Decision) -> str:
    """Say what was decided."""
    words = _WORDS.get(decision.choice, "a decision that this version of ferry does not know")
    text = words.format(limit=format_duration(seconds(decision.downtime_limit)))
    return f"time is over: {text}" if decision.is_timeout else text


def decisions_table(decisions: Iterable[pb.Decision]) -> Table:
    """List decisions with the numbers they were made by."""
    rows = [
        (
            format_duration(seconds(decision.at)),
            str(decision.pass_count),
            format_bytes(decision.remaining_bytes),
            format_rate(decision.bytes_per_second),
            format_duration(seconds(decision.needed_downtime)),
            decision_words(decision),
        )
        for decision in decisions
    ]
    numbers = ("AT", "PASS", "LEFT", "RATE", "NEEDS")
    return columns((*numbers, "DECISION"), rows, right=frozenset(numbers))
