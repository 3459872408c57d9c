"""What a guest does by itself, or has done to it by others or by its disks, while it is still at the source.

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
from agent.qemu.endings import disk_error_of, of_stop, reset_of
from agent.qemu.status import RunState
from agent.vm.disk_images import disk_images
from common.errors import FerryError

if TYPE_CHECKING:
    from agent.migration.source import SourceSession
    from agent.qemu.endings import DiskError
    from agent.qemu.subscription import Event

# From STOP to `pre-switchover` it takes QEMU some milliseconds.
STOP_GRACE_S: Final = 0.1

_HERE = (out.Begun, out.Mirroring, out.Connecting, out.Transferring, out.Leaving)


class GuestWatch:
    """Looks at one guest on its way."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._news = asyncio.Event()
        self._may_stand_still = False
        self._errors: list[DiskError] = []
        self._told: set[DiskError] = set()
        self._detail = ""
        self.last_error = ""
        """What the guest was told of a disk last; empty when nothing."""

    def see(self, event: Event) -> None:
        """Look at an event of QEMU."""
        session = self._session
        if not isinstance(session.phase, _HERE):
            return
        match event.name:
            case "STOP":
                self.suspect_stop()
            case "BLOCK_IO_ERROR":
                self._see_error(disk_error_of(event))
            case "RESUME" if session.facts.guest_was_paused:
                session.update(guest_was_paused=False)
                self._warn("the guest was resumed during the migration, not by Ferry")
            case "RESET":
                self._warn(reset_of(event))

    def suspect_stop(self) -> None:
        """Look whether the guest stands still: events of it may have been missed."""
        self._may_stand_still = True
        self._news.set()

    def _see_error(self, error: DiskError | None) -> None:
        if error is not None and error not in self._told:
            self._told.add(error)
            self._errors.append(error)
            self._news.set()

    async def run(self) -> None:
        """Look at stops and errors until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._errors:
                await self._tell(self._errors.pop(0))
            if not self._may_stand_still:
                continue
            self._may_stand_still = False
            await asyncio.sleep(STOP_GRACE_S)
            if isinstance(self._session.phase, _HERE):
                with suppress(FerryError):
                    self._see_state(await self._session.qemu.query_status())

    async def _tell(self, error: DiskError) -> None:
        named = error.named(await self._find_disk(error.node))
        if error.stops:
            self._detail = named
            return
        self.last_error = named
        self._warn(f"the guest was told of an I/O error on {self._session.host_name}: {named}")

    async def _find_disk(self, node: str) -> str:
        """Find the disk that a node is of: while it is copied QEMU names a node of its own before it. Empty where that is gone."""
        definition = self._session.running_definition
        disks = {} if definition is None else {image.node: image.disk for image in disk_images(definition) if image.node}
        if node in disks:
            return disks[node]
        with suppress(FerryError):
            graph = await self._session.qemu.block.query_graph()
            return next((disks[one] for one in graph.below(node) if one in disks), "")
        return ""

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
        session.keep()
