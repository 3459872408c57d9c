"""The first answer to each request id, so that a repeat gives it again and changes nothing twice.

Kept for as long as callers may repeat; bounded. A repeat that comes while the first is at work waits for it. Answers do not
outlive the agent: after a restart a migration's own id and epoch make its requests safe to repeat, and a VM's state does for the
rest.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

# Callers repeat within a minute, in which no host does as much. An answer may take 15 kB.
KEPT_COUNT: Final = 250


class Answers:
    """Remembered answers by method and request id."""

    def __init__(self) -> None:
        self._answers: OrderedDict[tuple[str, str], object] = OrderedDict()
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    async def once(self, method: str, request_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work, or give its earlier answer; work that failed is done anew. Without a request id it is always done."""
        if not request_id:
            return await work()
        key = (method, request_id)
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                if key in self._answers:
                    return self._answers[key]  # type: ignore[return-value]  # the method decides the type
                answer = await work()
                self._answers[key] = answer
                if len(self._answers) > KEPT_COUNT:
                    self._answers.popitem(last=False)
                return answer
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
