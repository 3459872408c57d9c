"""One connection to QEMU: a UNIX socket that ends in each direction on its own, and that can be cut at any moment."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import InvalidRequest, Unreachable

# How much QEMU may leave in a socket of ours before a write waits; the kernel cuts it down to net.core.wmem_max.
SEND_BUFFER_BYTES: Final = 4 * 1024 * 1024
DIAL_TIMEOUT_S: Final = 5.0
_BACKLOG_RETRY_S: Final = 0.01
_MAX_PATH_BYTES: Final = 107  # sun_path less its NUL; Source: unix(7)


class StreamBroken(Unreachable):
    """A connection ended before both directions had said that they were done."""

    default_reason = "STREAM_BROKEN"


class QemuGone(StreamBroken):
    """QEMU takes no more bytes; it may still have some to give."""

    default_reason = "QEMU_GONE"


@dataclass(slots=True)
class Counters:
    """Bytes that a session read from QEMU and wrote to it."""

    read_bytes: int = 0
    written_bytes: int = 0


class Link:
    """A connected socket of QEMU. Whoever makes one closes it.

    Args:
        connection: connected; becomes non-blocking here.
        counters: told every byte that passes.
    """

    def __init__(self, connection: socket.socket, counters: Counters) -> None:
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._socket = connection
        self._counters = counters
        self._is_cut = False

    async def receive(self, limit_bytes: int) -> bytes:
        """Return what QEMU wrote, as soon as there is any; empty once QEMU has shut its writing down.

        Raises:
            StreamBroken: QEMU reset the connection, or it was cut.
        """
        try:
            content = await asyncio.get_running_loop().sock_recv(self._socket, limit_bytes)
        except OSError as error:
            raise self._broken(f"QEMU broke its connection: {error.strerror}") from error
        if self._is_cut:  # our own shutdown looks like an orderly end
            raise self._broken("")
        self._counters.read_bytes += len(content)
        return content

    async def send(self, content: memoryview) -> None:
        """Give QEMU some bytes; return when its socket has taken all.

        Raises:
            QemuGone: QEMU takes no more.
            StreamBroken: the connection was cut.
        """
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, content)
        except OSError as error:
            raise self._broken(f"QEMU takes no more: {error.strerror}", QemuGone) from error
        self._counters.written_bytes += len(content)

    def end_sending(self) -> None:
        """Tell QEMU that no more comes; it may go on writing."""
        with suppress(OSError):  # a QEMU that is gone needs no telling
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Shut both directions down now; QEMU notices at once, and so does whoever waits in here."""
        self._is_cut = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _broken(self, text: str, kind: type[StreamBroken] = StreamBroken) -> StreamBroken:
        return StreamBroken("the session was closed", reason="SESSION_CLOSED") if self._is_cut else kind(text)


async def dial(path: Path, counters: Counters) -> Link:
    """Connect to the socket that QEMU listens on.

    Raises:
        Unreachable: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(0)
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            while not _try_connect(connection, path):  # noqa: ASYNC110 - the kernel does not tell when a backlog has room
                await asyncio.sleep(_BACKLOG_RETRY_S)
        return Link(connection, counters)
    except (OSError, TimeoutError) as error:
        connection.close()
        reason = str(error) or f"its backlog was full for {DIAL_TIMEOUT_S} s"
        raise Unreachable(f"QEMU does not listen on {path}: {reason}", reason="QEMU_NOT_LISTENING", path=path) from error
    except BaseException:
        connection.close()
        raise


def listen(path: Path, backlog: int) -> socket.socket:
    """Bind a socket that QEMU may connect to; what lay at the path is replaced.

    Raises:
        Unreachable: it cannot be bound there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.settimeout(0)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise Unreachable(f"socket {path} cannot be listened on: {error.strerror}", reason="SOCKET_FAILED", path=path) from error
    return listener


def check_socket_path(path: Path) -> None:
    """Refuse a path that no UNIX socket can have.

    Raises:
        InvalidRequest: it is relative or too long.
    """
    length_bytes = len(str(path).encode())
    if not path.is_absolute() or length_bytes > _MAX_PATH_BYTES:
        raise InvalidRequest(
            f"socket path {path}: an absolute path of at most {_MAX_PATH_BYTES} bytes is wanted, this has {length_bytes}",
            reason="SOCKET_PATH_INVALID",
            path=path,
        )


def _try_connect(connection: socket.socket, path: Path) -> bool:
    """Say whether it connected; a full backlog is no error, and asyncio's own sock_connect takes it for success."""
    try:
        connection.connect(str(path))
    except BlockingIOError:
        return False
    return True
