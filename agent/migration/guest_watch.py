"""What a guest does by itself, or has done to it by others, while it is still at the source: it stops, goes on, reboots.

A guest stops at the switch-over too, so a stop is looked at a moment later, off the way of a hand-over: then the switch-over has
been reached, or it was another stop. One that somebody paused goes on its way and stays paused; one that stopped for a reason of
its own stays here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.migration import outgoing as out
from agent.migration.machine import Cause
from agent.qemu.endings import of_stop, reset_of, stop_of
from agent.qemu.status import RunState
from common.errors import FerryError

if TYPE_CHECKING:
    from agent.migration.source import SourceSession
    from agent.qemu.subscription import Event

# From STOP to `pre-switchover` it takes QEMU some milliseconds.
STOP_GRACE_S: Final = 0.1

_HERE = (out.Begun, out.Mirroring, out.Connecting, out.Transferring, out.Leaving)


class GuestWatch:
    """Looks at one guest on its way."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._stopped = asyncio.Event()
        self._detail = ""

    def see(self, event: Event) -> None:
        """Look at an event of QEMU."""
        session = self._session
        if not isinstance(session.phase, _HERE):
            return
        match event.name:
            case "STOP":
                self._stopped.set()
            case "RESUME" if session.facts.guest_was_paused:
                session.update(guest_was_paused=False)
                self._warn("the guest was resumed during the migration, not by Ferry")
            case "RESET":
                self._warn(reset_of(event))
            case _:
                self._detail = (stop_of(event) or (None, self._detail))[1]

    def suspect_stop(self) -> None:
        """Look whether the guest stands still: events of it may have been missed."""
        self._stopped.set()

    async def run(self) -> None:
        """Look at stops until cancelled."""
        while True:
            await self._stopped.wait()
            self._stopped.clear()
            await asyncio.sleep(STOP_GRACE_S)
            if isinstance(self._session.phase, _HERE):
                with suppress(FerryError):
                    self._see_state(await self._session.qemu.query_status())

    def _see_state(self, state: RunState) -> None:
        session, facts = self._session, self._session.facts
        ending = of_stop(state, self._detail, during="migration", where=session.host_name, vm=facts.vm_name)
        if ending is not None:
            session.observe(out.CancelRequested(Cause(ending.text, ending.reason)))
        elif state is RunState.PAUSED and not facts.guest_was_paused and not facts.options.pause:
            session.update(guest_was_paused=True, timeline=replace(facts.timeline, stopped_at_s=None))
            self._warn("the guest was paused during the migration, not by Ferry; it stays paused wherever it is then")

    def _warn(self, text: str) -> None:
        session = self._session
        if text not in session.facts.warnings:
            session.update(warnings=(*session.facts.warnings, text))
        session.save()
