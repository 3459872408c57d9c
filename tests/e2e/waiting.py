"""Waiting for what a process does in its own time: by asking again and again, never longer than a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01
WAIT_S = 20.0


async def until(is_so: Callable[[], object], wanted: str, *, timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it did not in time; the text says what was wanted.
    """
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not in {timeout_s:g} s: {wanted}")
        await asyncio.sleep(POLL_S)


async def until_equal(ask: Callable[[], Awaitable[T]], wanted: T, *, timeout_s: float = WAIT_S) -> None:
    """Ask until the answer is `wanted`.

    Raises:
        AssertionError: it is another one at the end of the time.
    """
    deadline_s = time.monotonic() + timeout_s
    while (answer := await ask()) != wanted:
        if time.monotonic() > deadline_s:
            raise AssertionError(f"after {timeout_s:g} s it is {answer!r}, wanted is {wanted!r}")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def deadline(wanted: str, *, timeout_s: float = WAIT_S) -> AsyncIterator[None]:
    """Bound a block of waiting.

    Raises:
        TimeoutError: it took longer; the text says what was wanted.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"not in {timeout_s:g} s: {wanted}") from error
