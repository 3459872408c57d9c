"""A guest's line in the user's terminal: raw, until Ctrl-] is typed or the line ends.

What is no terminal is carried as it is: stdin until its end, stdout until the line ends, or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import grpc

from common.rpc.status import error_of
from coordinator.cli.screen import Screen, printable
from ferry.agent.v1 import console_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from coordinator.cli.link import Agent

LEAVE: Final = b"\x1d"  # Ctrl-]
_READ_BYTES: Final = 4096
_QUEUE_LENGTH: Final = 256
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)


class Typed:
    """What is typed, as requests. Ctrl-] ends it where stdin is a terminal; the end of another stdin ends nothing."""

    def __init__(self, opening: pb.ConsoleOpening, *, is_terminal: bool) -> None:
        self._queue: asyncio.Queue[pb.AttachConsoleRequest] = asyncio.Queue(_QUEUE_LENGTH)
        self._queue.put_nowait(pb.AttachConsoleRequest(opening=opening))
        self._is_terminal = is_terminal
        self._waiting_fd: int | None = None
        self.left = asyncio.Event()

    async def requests(self) -> AsyncIterator[pb.AttachConsoleRequest]:
        """Yield the opening, then what is typed; never ends, since the call is cancelled."""
        while True:
            yield await self._queue.get()
            if self._waiting_fd is not None:
                asyncio.get_running_loop().add_reader(self._waiting_fd, self.take, self._waiting_fd)
                self._waiting_fd = None

    def take(self, fd: int) -> None:
        """Read what is there; called when there is something."""
        if self._queue.full():
            self._waiting_fd = fd  # the guest does not read; the terminal keeps the rest
            asyncio.get_running_loop().remove_reader(fd)
            return
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the terminal is gone
            data = b""
            self.left.set()
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
        before, leaves, _ = data.partition(LEAVE) if self._is_terminal else (data, b"", b"")
        if before:
            self._queue.put_nowait(pb.AttachConsoleRequest(data=before))
        if leaves or (self._is_terminal and not data):
            self.left.set()


async def attach(agent: Agent, opening: pb.ConsoleOpening) -> str:
    """Join the terminal and a line; returns why it ended, in a few words.

    Raises:
        FerryError: the agent refuses, or another client took the line over.
    """
    fd = sys.stdin.fileno()
    is_terminal = os.isatty(fd)
    typed = Typed(opening, is_terminal=is_terminal)
    call = agent.stub.AttachConsole(typed.requests())
    loop = asyncio.get_running_loop()
    try:
        with _errors_of(agent):
            first = await anext(aiter(call))
        for number in _ENDINGS:
            loop.add_signal_handler(number, typed.left.set)
        with _raw(fd, is_terminal=is_terminal), _reading(fd, typed), _errors_of(agent):
            _tell(f"attached to {first.device} of {opening.vm}", is_terminal=is_terminal)
            async with asyncio.TaskGroup() as tasks:
                printing = tasks.create_task(_print(call))
                leaving = tasks.create_task(typed.left.wait())
                await asyncio.wait((printing, leaving), return_when=asyncio.FIRST_COMPLETED)
                was_left = not printing.done()
                printing.cancel()
                leaving.cancel()
            if not was_left:
                await printing
        return "left" if was_left else "the line was closed"
    finally:
        call.cancel()
        for number in _ENDINGS:
            loop.remove_signal_handler(number)


async def _print(call: grpc.aio.StreamStreamCall[pb.AttachConsoleRequest, pb.AttachConsoleResponse]) -> None:
    async for response in call:
        data = response.data
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


def _tell(text: str, *, is_terminal: bool) -> None:
    """Say that keys are the guest's from now on; a raw terminal begins no line by itself."""
    if is_terminal:
        os.write(sys.stderr.fileno(), f"{printable(text)}; Ctrl-] leaves\r\n".encode())
    else:
        Screen().note(text)


@contextmanager
def _errors_of(agent: Agent) -> Iterator[None]:
    """Turn the end of a stream into our errors, out of the task group that it ends too."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, agent.peer.title) from error
    except BaseExceptionGroup as group:
        ended = group.exceptions[0]
        if isinstance(ended, grpc.aio.AioRpcError):
            raise error_of(ended, agent.peer.title) from ended
        raise


@contextmanager
def _raw(fd: int, *, is_terminal: bool) -> Iterator[None]:
    """Put a terminal into raw mode, and back."""
    if not is_terminal:
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
            os.write(sys.stderr.fileno(), b"\r\n")


@contextmanager
def _reading(fd: int, typed: Typed) -> Iterator[None]:
    """Read stdin when there is something; a file, which has always something, is read at once."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(fd, typed.take, fd)
    except PermissionError:  # epoll takes no regular files
        typed.take(fd)
        yield
        return
    try:
        yield
    finally:
        loop.remove_reader(fd)
