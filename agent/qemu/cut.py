"""Cut a TCP connection of a QEMU from outside, which frees it when its peer went silent.

QEMU does some things with blocking sockets on its main thread. While the peer says nothing the guest stands still and
no command, signal or new connection helps. A copy of the socket, shut down here, does: QEMU sees an ordinary end.
Never a reason to kill: a source QEMU that is killed takes the only running copy with it.

Needs the right to ptrace the process: root, CAP_SYS_PTRACE, or the same user where ptrace is allowed. Everything here
is synchronous and takes well under a millisecond, so that a poll may call it. Source: proc(5), pidfd_getfd(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYS_PIDFD_GETFD: Final = 438  # the same on every architecture of Linux >= 5.6
_SOCKET_PREFIX: Final = "socket:["
_FAMILIES: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_NOWHERE: Final = ("", 0)
_WORD_LENGTH: Final = 8  # of 32 bits, in hex
_REMOTE_FIELD: Final = 2
_INODE_FIELD: Final = 9
_PIECE_BYTES: Final = 1 << 20


class TcpState(Enum):
    """The kernel's TCP state. Source: include/net/tcp_states.h."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP socket of another process, at the moment of looking.

    Attributes:
        fd: its number there.
        inode: which socket it is; numbers are used again, inodes hardly.
        local, remote: address and port; IPv4 also where the socket is IPv6 with a mapped address; `("", 0)` for none.
    """

    fd: int
    inode: int
    local: tuple[str, int]
    remote: tuple[str, int]
    state: TcpState


class CutRefused(WrongState):
    """The kernel does not let us take a copy of the process's socket."""

    default_reason = "CUT_NOT_PERMITTED"


def connections(pid: int, *, with_listening: bool = False) -> tuple[Connection, ...]:
    """List the TCP sockets of a process; empty when there is no such process.

    Takes and returns a copy of each socket, as the kernel's tables of all sockets take milliseconds to read.

    Raises:
        CutRefused: we may not look at its descriptors.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return ()
    try:
        found = tuple(_connections(pid, pidfd))
    except (FileNotFoundError, ProcessLookupError):
        return ()
    except PermissionError as error:
        raise _refused(pid, error) from error
    finally:
        os.close(pidfd)
    return tuple(one for one in found if with_listening or one.state is not TcpState.LISTEN)


def cut(pid: int, connection: Connection, *, sending_only: bool = False) -> bool:
    """End one TCP connection of a process, as if the network had; or only its sending, so that its reader does not notice.

    Returns False, with nothing done, when the process or that very connection is gone.

    Raises:
        CutRefused: we may not take a copy of the socket.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        with _copied(pidfd, connection.fd) as copy:
            if copy is None or _inode(copy) != connection.inode:
                return False
            return _shut_down(copy, socket.SHUT_WR if sending_only else socket.SHUT_RDWR)
    except PermissionError as error:
        raise _refused(pid, error) from error
    finally:
        os.close(pidfd)


def _connections(pid: int, pidfd: int) -> Iterator[Connection]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith(_SOCKET_PREFIX):
                continue
        except FileNotFoundError:
            continue
        fd = int(entry.name)
        with _copied(pidfd, fd) as copy:
            if copy is not None and copy.family in _FAMILIES and copy.proto == socket.IPPROTO_TCP:
                yield _look(pid, fd, copy)


def _look(pid: int, fd: int, copy: socket.socket) -> Connection:
    state = TcpState(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    try:
        remote = _plain(copy.getpeername())
    except OSError:  # not connected
        remote = _find_remote(pid, _inode(copy)) if state is TcpState.SYN_SENT else _NOWHERE
    return Connection(fd, _inode(copy), _plain(copy.getsockname()), remote, state)


@contextmanager
def _copied(pidfd: int, fd: int) -> Iterator[socket.socket | None]:
    """Hold a copy of another process's socket; None when it, or the process, is gone."""
    copy = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        number = ctypes.get_errno()
        if number not in {errno.EBADF, errno.ESRCH}:
            raise OSError(number, os.strerror(number))
        yield None
        return
    try:
        # Never set a timeout on it: that would make the process's own socket non-blocking.
        held = socket.socket(fileno=copy)
    except OSError:  # a file by now
        os.close(copy)
        yield None
        return
    with held:
        yield held


def _shut_down(copy: socket.socket, how: int) -> bool:
    try:
        copy.shutdown(how)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _inode(copy: socket.socket) -> int:
    return os.fstat(copy.fileno()).st_ino


def _plain(name: tuple[str, int]) -> tuple[str, int]:
    """Take host and port of a socket's name, and IPv4 out of a mapped address."""
    host, port = name[:2]
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), port


def _find_remote(pid: int, inode: int) -> tuple[str, int]:
    """Find whom a socket in SYN_SENT calls: getpeername() does not say yet, the kernel's table does."""
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # no IPv6 here
            fields = _find_line(_read(f"/proc/{pid}/net/{table}"), str(inode))
            if fields is not None:
                return _decode_address(fields[_REMOTE_FIELD])
    return _NOWHERE


def _read(path: str) -> str:
    """Read a table of /proc in large pieces; each read walks the kernel's table from its start."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(fd, _PIECE_BYTES), b"")).decode("ascii")
    finally:
        os.close(fd)


def _find_line(table: str, inode: str) -> list[str] | None:
    lines = (line.split() for line in table.splitlines()[1:])
    return next((fields for fields in lines if fields[_INODE_FIELD] == inode), None)


def _decode_address(text: str) -> tuple[str, int]:
    """Decode `0100007F:1F90`: words in this machine's byte order, the port as a number."""
    host, port = text.split(":")
    words = [int(host[at : at + _WORD_LENGTH], 16) for at in range(0, len(host), _WORD_LENGTH)]
    packed = struct.pack(f"={len(words)}I", *words)
    return _plain((str(ip_address(packed)), int(port, 16)))


def _refused(pid: int, error: PermissionError) -> CutRefused:
    return CutRefused(f"process {pid}: may not touch its sockets: {error.strerror}", pid=pid)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 4
_libc.syscall.restype = ctypes.c_long
