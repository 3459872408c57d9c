"""Connections to the destination's encrypted port that are not the source's.

A stranger who connects and says nothing makes the destination's QEMU mute, and with it the source's guest. The source's agent tells
which local ports are its QEMU's; what else connects is cut from outside.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from agent.qemu import cut
from common.errors import FerryError

LOOK_INTERVAL_S: Final = 0.05
UNREPORTED_LIMIT_S: Final = 0.5

_log = structlog.get_logger()


class Strangers:
    """Watches the listening port of one destination QEMU."""

    def __init__(self, migration_id: str, process_id: int, port: int) -> None:
        self._migration_id = migration_id
        self._process_id = process_id
        self._port = port
        self._is_announced = False
        self._is_complete = False
        self._source_ports: frozenset[int] = frozenset()
        self._first_seen_s: dict[int, float] = {}

    def move(self, port: int) -> None:
        """Watch another port, whose source announces itself anew."""
        self._port = port
        self._is_announced = self._is_complete = False
        self._first_seen_s.clear()

    def report(self, ports: tuple[int, ...], *, is_complete: bool) -> None:
        """Take the source's word for which connections are its own; a first one without ports says that it is about to connect."""
        self._is_announced = True
        self._is_complete = is_complete
        self._source_ports |= frozenset(ports)

    async def run(self) -> None:
        """Cut strangers until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.look(loop.time())
            except FerryError as error:
                _log.warning("strangers cannot be cut", migration=self._migration_id, error=error.text)
                return
            await asyncio.sleep(LOOK_INTERVAL_S)

    def look(self, now_s: float) -> None:
        """Cut every connection that is known to be a stranger's.

        Before the source announced itself all are. Until it has named all of its own, those it has not named get a little time.
        """
        for one in cut.connections(self._process_id):
            if one.local[1] != self._port or one.remote[1] in self._source_ports:
                continue
            age_s = now_s - self._first_seen_s.setdefault(one.inode, now_s)
            if self._is_announced and not self._is_complete and age_s < UNREPORTED_LIMIT_S:
                continue
            if cut.cut(self._process_id, one):
                _log.warning("stranger cut", migration=self._migration_id, remote=f"{one.remote[0]}:{one.remote[1]}")
