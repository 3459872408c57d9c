"""Whether the destination's agent is there: it is asked all the time while the guest runs, so that a switch-over need not ask.

A guest that is given to a host whose agent is away stands still until that agent is back. So the machine goes on from
`pre-switchover` only with an answer to a question that is not older than `FRESH_S`; else the guest waits for one, for as long as
its user allows it to stand still, and then goes on here. docs/decisions/0025 has what else was tried.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from agent.migration import outgoing as out
from agent.migration.clocks import now_s
from agent.migration.machine import Cause
from common.errors import FerryError, Unreachable

if TYPE_CHECKING:
    from agent.migration.source import SourceSession

INTERVAL_S: Final = 0.05
FRESH_S: Final = 0.15
ANSWER_TIMEOUT_S: Final = 0.5
RETRY_S: Final = 0.02
TOO_OLD: Final = "PEER_TOO_OLD"  # of common.rpc.status

Crossroads: TypeAlias = out.QemuAtSwitchover | out.MirrorsSettled
_ASKING = (out.Connecting, out.Transferring, out.Leaving, out.Settling)
_log = structlog.get_logger()


class Heartbeat:
    """The questions of one source session to the destination's agent."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._asked_at_s: float | None = None  # when the question was sent that was answered last
        self._failure: FerryError | None = None
        self._held: Crossroads | None = None
        self._is_needed = asyncio.Event()

    @property
    def is_fresh(self) -> bool:
        """Whether the destination's agent was there a moment ago."""
        return self._asked_at_s is not None and now_s() - self._asked_at_s <= FRESH_S

    @property
    def silence(self) -> str:
        """Why the guest waits for the destination's agent; empty while it does not."""
        if self._held is None:
            return ""
        peer = self._session.facts.peer or "the destination"
        if self._failure is None:
            return f"the agent of {peer} has not answered"
        return f"the agent of {peer} is away ({self._failure.text})"

    def suspect(self) -> None:
        """Take no earlier answer for fresh: the connection to the destination's agent has ended."""
        self._asked_at_s = None
        self._is_needed.set()

    def tell(self, event: Crossroads) -> None:
        """Tell the machine that the guest could go; and again, once the destination's agent answers, if it does not now."""
        is_fresh = self.is_fresh
        self._held = None if is_fresh else event
        self._is_needed.set()
        self._session.observe(replace(event, destination_answers=is_fresh))

    async def run(self) -> None:
        """Ask until cancelled; not while QEMU switches over, as the answers would be in the way."""
        session = self._session
        while True:
            if session.destination is None or not isinstance(session.phase, _ASKING) or session.facts.options.modes.offline:
                self._held = None
                await session.wait_change()
                continue
            await self._ask()
            self._give_up_in_time()
            await self._rest()

    async def _rest(self) -> None:
        if self._held is not None:
            await asyncio.sleep(RETRY_S)
            return
        self._is_needed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL_S):
                await self._is_needed.wait()

    async def _ask(self) -> None:
        session = self._session
        destination = session.destination
        if destination is None:
            return
        asked_at_s = now_s()
        try:
            await destination.ping(session.facts.migration_id, session.agent_address, timeout_s=ANSWER_TIMEOUT_S)
        except FerryError as error:
            if error.reason == TOO_OLD:  # it is there: an agent of the version before has no word for it
                await self._see_answer(asked_at_s)
                return
            if self._failure is None:
                _log.warning("destination's agent is away", migration=session.facts.migration_id, error=error.text)
            self._failure = error
            await self._hold(is_held=True)
            return
        await self._see_answer(asked_at_s)

    async def _see_answer(self, asked_at_s: float) -> None:
        self._asked_at_s, self._failure = asked_at_s, None
        await self._hold(is_held=False)
        held = self._held
        if held is not None and self.is_fresh:
            self.tell(held)

    async def _hold(self, *, is_held: bool) -> None:
        session = self._session
        if isinstance(session.phase, out.Transferring):
            try:
                await session.steering.hold(is_held=is_held)
            except FerryError as error:
                _log.warning("switch-over not held back", migration=session.facts.migration_id, error=error.text)

    def _give_up_in_time(self) -> None:
        """Take the guest back from the brink once nobody is there to give it to; a silent one has what every silence has."""
        session = self._session
        stood_s = session.standstill_s
        allowed_s = session.facts.options.max_downtime_s
        if self._held is None or not isinstance(self._failure, Unreachable) or stood_s is None or stood_s < allowed_s:
            return
        text = f"{self.silence}, so the guest was not given to it and goes on here"
        session.observe(out.CancelRequested(Cause(text, self._failure.reason)))
