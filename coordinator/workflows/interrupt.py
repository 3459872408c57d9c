"""Leaving a call as soon as a client wishes a cancel; before the point of no return, where whatever it may have done is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from common.errors import WrongState
from common.tasks import OwnedTasks
from coordinator.workflows.moving import CANCELLED, Moving

T = TypeVar("T")


async def unless_cancelled(moving: Moving, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that an agent may take long to answer.

    Raises:
        WrongState: a client wished a cancel before, or meanwhile; the call may have happened.
    """
    try:
        async with OwnedTasks() as tasks, asyncio.timeout(None) as patience:
            tasks.start(_watch(moving, patience))
            answer = await call()
            if not moving.move.cancel_wanted:
                return answer
    except TimeoutError:
        if not moving.move.cancel_wanted:
            raise
    raise WrongState("cancelled by a client", reason=CANCELLED)


async def _watch(moving: Moving, patience: asyncio.Timeout) -> None:
    async for move in moving.board.follow(moving.migration_id):
        if move.cancel_wanted:
            patience.reschedule(asyncio.get_running_loop().time())
            return
