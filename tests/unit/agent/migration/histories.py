"""Walk every history of a machine: each legal sequence of events up to a length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.migration.machine import InvalidTransition, Step

P = TypeVar("P")
V = TypeVar("V")
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class History(Generic[P, V, F]):
    """Events that were legal one after the other, where they led, and every effect in order."""

    events: tuple[V, ...]
    phases: tuple[P, ...]
    effects: tuple[F, ...]

    @property
    def phase(self) -> P:
        """The phase at the end."""
        return self.phases[-1]


def histories(step: Callable[[P, V], Step[P, F]], start: P, events: tuple[V, ...], length: int) -> Iterator[History[P, V, F]]:
    """Yield every history of at most `length` events that change something, the empty one included."""
    stack: list[History[P, V, F]] = [History((), (start,), ())]
    while stack:
        history = stack.pop()
        yield history
        if len(history.events) == length:
            continue
        for event in events:
            try:
                after = step(history.phase, event)
            except InvalidTransition:
                continue
            if after.phase == history.phase and not after.effects:
                continue  # what changes nothing makes no other history
            stack.append(History((*history.events, event), (*history.phases, after.phase), (*history.effects, *after.effects)))
