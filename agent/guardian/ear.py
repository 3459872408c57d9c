"""The guardian's end of its line to the agent: what it is told, and whether the agent is there."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final

from agent.guardian.charge import BEAT, MESSAGE_BYTES, Charge, read_charge
from agent.qemu.identity import ProcessIdentity
from common.clock import boot_s

# An agent that is held by SIGSTOP or a debugger is surely away; one that only has no time is left more of it.
STOPPED_AFTER_S: Final = 0.8
SILENT_AFTER_S: Final = 1.2


class Ear:
    """Hears the agent; `news` is set by whatever it says, and by its end."""

    def __init__(self, line: socket.socket, agent: ProcessIdentity) -> None:
        self._line = line
        self._agent = agent
        self._connection: socket.socket | None = None
        self.charge: Charge | None = None
        self.heard_at_s = boot_s()
        self.has_ended = False
        self.news = asyncio.Event()

    def listen(self) -> None:
        """Begin to hear; needs a running loop."""
        self._line.settimeout(0)
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    @property
    def is_agent_away(self) -> bool:
        """Whether the agent has ended, or has been silent for longer than an agent that is there ever is."""
        if self.has_ended:
            return True
        silent_s = boot_s() - self.heard_at_s
        if silent_s < STOPPED_AFTER_S:
            return False
        allowed_s = 0.0 if self.charge is None else self.charge.max_downtime_s
        return self._agent.is_stopped() or silent_s >= SILENT_AFTER_S + allowed_s

    def cut_off(self) -> None:
        """End the agent's connection to QEMU, which serves one client at a time."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    async def wait_news(self, timeout_s: float) -> None:
        """Return when the agent says something or ends, or after a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.news.wait()
        self.news.clear()

    def _hear(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self._line, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            message, fds = b"", []
        self.news.set()
        self.heard_at_s = boot_s()
        if not message:
            self.has_ended = True
            asyncio.get_running_loop().remove_reader(self._line)
            return
        if fds:
            if self._connection is not None:
                self._connection.close()
            self._connection = socket.socket(fileno=fds[0])
            for more in fds[1:]:
                os.close(more)
        if message != BEAT:
            self.charge = read_charge(message)
