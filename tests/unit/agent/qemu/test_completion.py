"""Waiting for an end: woken by events and wishes, and told why QEMU ended."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agent.qemu.completion import wait_end
from agent.qemu.errors import QemuGone
from agent.qemu.subscription import Event, Feed, Gone

SOON_S = 0.2


class Told:
    """A QEMU that says what it is told to."""

    def __init__(self) -> None:
        self.feed = Feed()
        self.answers: list[str | QemuGone | None] = []
        self.has_looked = asyncio.Event()
        self.qemu: Any = SimpleNamespace(monitor=self.feed)

    async def look(self) -> str | None:
        self.has_looked.set()
        answer = self.answers.pop(0)
        if isinstance(answer, QemuGone):
            raise answer
        return answer


def event(name: str, **data: object) -> Event:
    return Event(name, data, at_s=0.0, received_s=0.0)


async def test_an_end_that_is_there_is_found_at_once():
    told = Told()
    told.answers = ["done"]

    assert await wait_end(told.qemu, told.look, wish=asyncio.Event()) == "done"


@pytest.mark.parametrize("waker", ["event", "wish"])
async def test_an_event_or_a_wish_wakes_at_once(waker: str):
    told, wish = Told(), asyncio.Event()
    told.answers = [None, "done"]

    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait_end(told.qemu, told.look, wish=wish))
        await told.has_looked.wait()
        if waker == "event":
            told.feed.publish(event("MIGRATION", status="completed"))
        else:
            wish.set()

    assert waiting.result() == "done"


async def test_a_qemu_that_ends_is_told_with_its_own_reason():
    told = Told()
    told.answers = [None, QemuGone("the process has ended")]

    asyncio.get_running_loop().call_soon(told.feed.publish, event("SHUTDOWN", reason="host-signal"))
    asyncio.get_running_loop().call_soon(told.feed.publish, Gone())
    with pytest.raises(QemuGone) as caught:
        await wait_end(told.qemu, told.look, wish=asyncio.Event())

    assert caught.value.facts["shutdown"] == "host-signal"
