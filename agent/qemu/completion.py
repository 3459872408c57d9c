"""Waiting for the end of what QEMU does by itself: a save, a restore, a dump. Its events wake, a slow query is the safety net.

`agent.qemu.endings` has the words for the ends. The source of a live migration has eyes of its own, `agent.migration.source_watch`:
there nothing may stand between an event and what is done about it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from agent.qemu.errors import QemuGone
from agent.qemu.subscription import Event
from common.tasks import OwnedTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.qemu.commands import Qemu
    from agent.qemu.subscription import Subscription

T = TypeVar("T")

SAFETY_INTERVAL_S: Final = 0.5
_GONE_TIMEOUT_S: Final = 1.0


async def wait_end(qemu: Qemu, look: Callable[[], Awaitable[T | None]], *, wish: asyncio.Event) -> T:
    """Look now, at each of QEMU's events, when the wish comes, and twice a second at least, until there is an end; return it.

    Raises:
        QemuGone: it ended meanwhile; the fact `shutdown` is the reason that it gave.
    """
    with qemu.monitor.subscribe() as notices:
        beat = _Beat()
        async with OwnedTasks() as tasks:
            tasks.start(beat.listen(notices))
            tasks.start(beat.heed(wish))
            while True:
                beat.woken.clear()
                try:
                    end = await look()
                except QemuGone as error:
                    raise QemuGone(error.text, shutdown=await beat.shutdown_reason()) from error
                if end is not None:
                    return end
                with suppress(TimeoutError):
                    async with asyncio.timeout(SAFETY_INTERVAL_S):
                        await beat.woken.wait()


class _Beat:
    """What wakes a wait."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self._over = asyncio.Event()
        self._shutdown = ""

    async def listen(self, notices: Subscription) -> None:
        """Wake at each notice, and remember why QEMU ends."""
        async for notice in notices:
            if isinstance(notice, Event) and notice.name == "SHUTDOWN":
                self._shutdown = str(notice.data.get("reason", ""))
            self.woken.set()
        self._over.set()

    async def heed(self, wish: asyncio.Event) -> None:
        """Wake when the wish comes."""
        await wish.wait()
        self.woken.set()

    async def shutdown_reason(self) -> str:
        """Return the reason that an ended QEMU gave; empty when it gave none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_TIMEOUT_S):
                await self._over.wait()
        return self._shutdown
