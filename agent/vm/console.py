"""Consoles: one client at a time at each line of a guest.

A session ends when its client leaves, when QEMU closes the line, or when another client takes the line over.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from agent.vm.lines import Place, find_line
from common.errors import Busy, WrongState

if TYPE_CHECKING:
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

READ_BYTES: Final = 64 * 1024
# A socket that its last client has just left is reported as taken for a moment.
FREE_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.05
_log = structlog.get_logger()


class Session:
    """A client at a line; owns the open descriptor."""

    def __init__(self, place: Place, who: str, fd: int) -> None:
        self.place = place
        self.who = who
        self.taken_by = ""
        self._fd = fd
        self._over = asyncio.Event()
        self._readable = asyncio.Event()

    async def output(self) -> AsyncIterator[bytes]:
        """Yield what the guest says, until the session ends.

        Raises:
            Busy: another client took the line over.
        """
        while not self._over.is_set():
            self._readable.clear()
            data = self._read()
            if data == b"":
                return
            if data is not None:
                yield data
            else:
                await self._readable.wait()
        if self.taken_by:
            raise Busy(f"{self.place.device} was taken over by {self.taken_by}", reason="CONSOLE_TAKEN_OVER", holder=self.taken_by)

    async def write(self, data: bytes) -> None:
        """Type into the line; what a guest that does not read cannot take is waited for."""
        while data and not self._over.is_set():
            with suppress(BlockingIOError):
                data = data[os.write(self._fd, data) :]
                continue
            await asyncio.sleep(_POLL_S)

    def wake(self) -> None:
        """Look at the line again: it has something to say."""
        self._readable.set()

    def end(self, taken_by: str = "") -> None:
        """End the session; its descriptor is closed by `Consoles`."""
        self.taken_by = taken_by
        self._over.set()
        self._readable.set()

    def _read(self) -> bytes | None:
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # a pty whose QEMU ended says EIO
            return b""


class Consoles:
    """Who is at which line."""

    def __init__(self, vms: Vms) -> None:
        self._vms = vms
        self._sessions: dict[tuple[UUID, str], Session] = {}

    async def find(self, vm: Vm, device: str) -> Place:
        """Ask QEMU for a line.

        Raises:
            NotFound: there is none of this name.
            WrongState: the VM does not run, or nobody can attach to the line.
        """
        return find_line(await self._vms.qemu(vm).monitor.execute("query-chardev"), device, vm.name)

    async def make_room(self, vm: Vm, place: Place, who: str, *, force: bool) -> Place:
        """Ensure that nobody is at the line, with `force` by ending the session of whoever is.

        Raises:
            Busy: somebody is; the text says who.
        """
        held = self._sessions.get((vm.uuid, place.device))
        if held is not None:
            if not force:
                raise _taken(vm, place, held.who)
            held.end(taken_by=who)
        with suppress(TimeoutError):
            async with asyncio.timeout(FREE_TIMEOUT_S):
                while place.is_taken or (vm.uuid, place.device) in self._sessions:
                    await asyncio.sleep(_POLL_S)
                    place = await self.find(vm, place.device)
        if place.is_taken or (vm.uuid, place.device) in self._sessions:
            raise _taken(vm, place, "a program on that host")
        return place

    @contextmanager
    def attach(self, vm: Vm, place: Place, who: str) -> Iterator[Session]:
        """Open a line that has room; it is closed when the context is left.

        Raises:
            WrongState: it cannot be opened.
        """
        key = (vm.uuid, place.device)
        if key in self._sessions:
            raise _taken(vm, place, self._sessions[key].who)
        fd = _open(vm, place)
        session = self._sessions[key] = Session(place, who, fd)
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, session.wake)
        _log.info("console attached", vm=vm.name, device=place.device, who=who)
        try:
            yield session
        finally:
            session.end(session.taken_by)
            del self._sessions[key]
            loop.remove_reader(fd)
            os.close(fd)
            _log.info("console left", vm=vm.name, device=place.device, who=who)


def _open(vm: Vm, place: Place) -> int:
    try:
        if place.is_socket:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.connect(str(place.path))
                fd = line.detach()
            os.set_blocking(fd, False)
            return fd
        fd = os.open(place.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(fd)
    except OSError as error:
        raise WrongState(
            f"VM {vm.name}: {place.device} at {place.path} cannot be opened: {error.strerror}",
            reason="LINE_NOT_ATTACHABLE",
            vm=vm.name,
            device=place.device,
        ) from error
    return fd


def _taken(vm: Vm, place: Place, who: str) -> Busy:
    return Busy(
        f"VM {vm.name}: {place.device} is in use by {who}; force takes it over from another client of the agent",
        reason="CONSOLE_IN_USE",
        vm=vm.name,
        device=place.device,
        holder=who,
    )
