"""What both machines of a migration share: a step, and the refusal of one.

A machine is a pure function `step(phase, event) -> Step`. It knows nothing of time, QEMU or the network: those arrive as events,
and what it wants done leaves as effects. The driver in `agent.migration.session` saves the phase before it runs the effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Phase = TypeVar("Phase")
Effect = TypeVar("Effect")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a migration did not go on.

    Attributes:
        text: one line for people.
        reason: stable UPPER_SNAKE word for programs.
        by_wish: whether somebody asked for it.
    """

    text: str
    reason: str
    by_wish: bool = False


@dataclass(frozen=True)
class Step(Generic[Phase, Effect]):
    """The answer of a machine to an event: where it is now, and what has to be done."""

    phase: Phase
    effects: tuple[Effect, ...] = ()


class InvalidTransition(Exception):
    """The event has no meaning in this phase; nothing was changed."""

    def __init__(self, phase: object, event: object) -> None:
        super().__init__(f"{type(event).__name__} has no meaning in {type(phase).__name__}")
        self.phase = phase
        self.event = event
