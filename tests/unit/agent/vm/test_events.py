"""Events are numbered, bounded and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from agent.vm.events import Happening, Reason, VmEvent, VmEvents

VM = UUID(int=1)


def emit(events: VmEvents, count: int = 1) -> None:
    """Emit some events."""
    for _ in range(count):
        events.emit(VM, "web", Happening.STARTED, Reason.BOOTED)


async def next_sequence(follower: AsyncIterator[VmEvent]) -> int:
    """Wait for the next event's number."""
    return (await anext(follower)).sequence


def test_events_are_numbered_from_one_and_stamped() -> None:
    events = VmEvents(lambda: 12.5)

    emit(events, 2)

    assert [(event.sequence, event.at_s) for event in events.after(0)] == [(1, 12.5), (2, 12.5)]
    assert [event.sequence for event in events.after(1)] == [2]


def test_only_the_last_events_are_held() -> None:
    events = VmEvents(lambda: 0.0, length=3)

    emit(events, 5)

    assert [event.sequence for event in events.after(0)] == [3, 4, 5]


async def test_a_follower_gets_what_is_held_and_then_what_comes() -> None:
    events = VmEvents(lambda: 0.0)
    emit(events, 2)
    follower = events.follow(after_sequence=1)

    assert (await anext(follower)).sequence == 2
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(next_sequence(follower))
        emit(events)

    assert waiting.result() == 3


async def test_a_number_of_an_earlier_run_means_everything_held() -> None:
    events = VmEvents(lambda: 0.0)
    emit(events)

    assert (await anext(events.follow(after_sequence=500))).sequence == 1
