"""A guest's wall clock stands still with it: its agent, if one answers, sets a clock that stayed behind.

A clock that is ahead is left alone: no move makes one so.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from agent.migration.arrival import ClockSync, Outcome
from agent.qemu.commands import Qemu
from agent.qemu.guest_agent import CHANNEL, AgentRefused, GuestAgent, guest_agent
from agent.vm.definition import Definition
from common.errors import FerryError

# Less is what a clock without NTP is wrong by anyway, and setting it has a cost of its own.
TOLERANCE_S: Final = 0.1
ANSWER_TIMEOUT_S: Final = 1.0
# The agent also sets the RTC, by a program that waits for a full second of it.
SET_TIMEOUT_S: Final = 3.0
_UNIX: Final = "unix:"
_FREE: Final = f"disconnected:{_UNIX}"
_NS: Final = 1_000_000_000


async def sync_clock(qemu: Qemu, definition: Definition) -> ClockSync:
    """Compare the guest's clock with this host's, and set it if it is behind; never raises, and takes 4 s at most."""
    label = _find_chardev(definition)
    if not label:
        return ClockSync()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            chardev = (await qemu.query_chardevs()).get(label)
        if chardev is None or not chardev.is_frontend_open:
            return ClockSync(Outcome.NO_AGENT)
        if not chardev.filename.startswith(_FREE):
            return ClockSync(Outcome.FAILED, error=f"channel {CHANNEL} has another client, or is no UNIX socket")
        return await _sync(chardev.filename.removeprefix(_FREE).partition(",")[0])
    except FerryError as error:
        return ClockSync(Outcome.FAILED, error=error.text)
    except TimeoutError:
        return ClockSync(Outcome.FAILED, error="the guest's agent does not answer")


async def _sync(path: str) -> ClockSync:
    async with guest_agent(path) as agent:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await agent.synchronise()
            behind_s = await _behind_s(agent)
        if behind_s < TOLERANCE_S:
            return ClockSync(Outcome.RIGHT, behind_s)
        async with asyncio.timeout(SET_TIMEOUT_S):
            why = "it was set and is wrong again"
            try:
                await agent.set_time_ns(time.time_ns())
            except AgentRefused as error:  # also where the clock was set and the RTC was not
                why = error.text
            is_set = abs(await _behind_s(agent)) < TOLERANCE_S
        return ClockSync(Outcome.SET, behind_s) if is_set else ClockSync(Outcome.FAILED, behind_s, why)


async def _behind_s(agent: GuestAgent) -> float:
    """Tell how far the guest's clock is behind; the agent reads it about halfway between our question and its answer."""
    asked_ns = time.time_ns()
    guest_ns = await agent.get_time_ns()
    return ((asked_ns + time.time_ns()) / 2 - guest_ns) / _NS


def _find_chardev(definition: Definition) -> str:
    """Find what stands behind the channel of a guest agent; empty without one."""
    return next((device.get("chardev") for device in definition.find("device") if device.get("name") == CHANNEL), "")
