"""How many migrations a host sends and receives at a time; the rest waits its turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiter:
    source: str
    destination: str
    may_go: asyncio.Event


class Slots:
    """Slots of hosts, given in the order of asking to whoever finds both of its hosts free.

    Args:
        outgoing_count, incoming_count: how many migrations a host sends and receives at a time.
    """

    def __init__(self, outgoing_count: int, incoming_count: int) -> None:
        self._outgoing_count = outgoing_count
        self._incoming_count = incoming_count
        self._outgoing: Counter[str] = Counter()
        self._incoming: Counter[str] = Counter()
        self._waiters: list[_Waiter] = []

    @asynccontextmanager
    async def hold(self, source: str, destination: str, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold a slot of both hosts in the block.

        Args:
            source: the host that sends.
            destination: the host that receives.
            on_wait: told what it waits for, if it has to.
        """
        waiter = _Waiter(source, destination, asyncio.Event())
        self._waiters.append(waiter)
        self._admit()
        try:
            if not waiter.may_go.is_set():
                on_wait(self._why(waiter))
            await waiter.may_go.wait()
            yield
        finally:
            if waiter.may_go.is_set():
                self._outgoing[source] -= 1
                self._incoming[destination] -= 1
            else:
                self._waiters.remove(waiter)
            self._admit()

    def _admit(self) -> None:
        for waiter in [*self._waiters]:
            if self._outgoing[waiter.source] < self._outgoing_count and self._incoming[waiter.destination] < self._incoming_count:
                self._waiters.remove(waiter)
                self._outgoing[waiter.source] += 1
                self._incoming[waiter.destination] += 1
                waiter.may_go.set()

    def _why(self, waiter: _Waiter) -> str:
        place = self._waiters.index(waiter) + 1
        sent, received = self._outgoing[waiter.source], self._incoming[waiter.destination]
        if sent >= self._outgoing_count:
            what = f"{waiter.source} is sending {_vms(sent)}, at most {self._outgoing_count} at a time"
        else:
            what = f"{waiter.destination} is receiving {_vms(received)}, at most {self._incoming_count} at a time"
        return f"queued, number {place}: {what}"


def _vms(count: int) -> str:
    return f"{count} VM{'s' if count != 1 else ''}"
