"""QEMU's events, fanned out to those who asked for them.

A feed never waits for a subscriber. One that is too slow loses what is queued for it and gets
`Reconnected` instead, which means what it means after a lost connection: events were missed,
query again.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

QUEUE_LENGTH: Final = 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event of QEMU.

    Attributes:
        name: QEMU's name, such as `MIGRATION`.
        data: QEMU's data, empty where an event has none.
        at_s: when it happened by QEMU's own stamp, on CLOCK_BOOTTIME.
        received_s: this process's monotonic clock when the event was read.
    """

    name: str
    data: Mapping[str, object]
    at_s: float
    received_s: float


@dataclass(frozen=True, slots=True)
class Reconnected:
    """Events may have been missed: ask QEMU for what matters."""

    cause: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The QEMU process ended; nothing follows."""


Notice = Event | Reconnected | Gone


class Subscription:
    """One reader's queue of notices, in QEMU's order; ends after `Gone`."""

    def __init__(self, length: int = QUEUE_LENGTH) -> None:
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(maxsize=length)
        self._is_over = False

    def __aiter__(self) -> Subscription:
        """Iterate over the notices; there is one iterator, the subscription itself."""
        return self

    async def __anext__(self) -> Notice:
        """Wait for the next notice."""
        if self._is_over:
            raise StopAsyncIteration
        notice = await self._queue.get()
        self._is_over = isinstance(notice, Gone)
        return notice

    def put(self, notice: Notice) -> None:
        """Queue a notice, at the price of everything queued when there is no room."""
        if self._queue.full():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(Reconnected("reader too slow, events dropped"))
        self._queue.put_nowait(notice)


class Feed:
    """The set of subscriptions of one QEMU."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._gone: Gone | None = None

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Collect notices from now on; of a QEMU that is gone only `Gone`."""
        subscription = Subscription()
        if self._gone is not None:
            subscription.put(self._gone)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def publish(self, notice: Notice) -> None:
        """Hand a notice to every subscription at once."""
        if isinstance(notice, Gone):
            self._gone = notice
        for subscription in self._subscriptions:
            subscription.put(notice)
