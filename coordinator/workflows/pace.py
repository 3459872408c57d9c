"""How often and how long the coordinator asks again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """The waits of a workflow.

    Attributes:
        repeat_count: how often a step before the transfer is tried when it may or may not have happened.
        retry_first_s, retry_last_s: waits between two questions, doubled each time.
        ask_again_s: first wait for a hand-over that is about to end.
        resume_patience_s: how long the source's agent has to deliver Resume before the coordinator does.
        first_look_s: how long both agents may take at first to say where the guest is; a cancel is to be told in time.
        undo_patience_s: how long the first undo of a step may take before the end is told without it.
        earlier_patience_s: how long a migration waits for an earlier one of its VM to be undone.
        loading_patience_s: how long a destination whose source has ended may still take to have all of the guest.
    """

    repeat_count: int = 3
    retry_first_s: float = 0.2
    retry_last_s: float = 2.0
    ask_again_s: float = 0.02
    resume_patience_s: float = 0.5
    first_look_s: float = 1.0
    undo_patience_s: float = 0.7
    earlier_patience_s: float = 5.0
    loading_patience_s: float = 10.0

    def delays(self) -> Iterator[float]:
        """Yield growing waits for ever."""
        return _growing(self.retry_first_s, self.retry_last_s)

    def short_delays(self) -> Iterator[float]:
        """Yield growing waits for ever, the first ones for what ends in a moment."""
        return _growing(self.ask_again_s, self.retry_last_s)


def _growing(first_s: float, last_s: float) -> Iterator[float]:
    delay_s = first_s
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, last_s)
