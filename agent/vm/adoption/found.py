"""The process behind a QMP socket: who it is, how it was started, and what its paths mean."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.qemu.errors import QemuInUse
from agent.qemu.identity import ProcessIdentity
from common.errors import InvalidRequest, NotFound, Unreachable, WrongState
from common.foreign_json import parse_json

GREETING_TIMEOUT_S: Final = 2.0
_UCRED: Final = struct.Struct("3i")  # Source: unix(7), struct ucred
_MAX_GREETING_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """A QEMU that somebody started.

    Attributes:
        argv: its command line, the program's name first.
        binary: the program that runs, whatever its name says.
        directory: where relative paths began when it was started.
        files: what it has open, by descriptor.
        uid: its effective user.
        is_apart: it lives in another mount namespace, where paths mean other files.
        is_daemon: it was started with -daemonize and works in `/`.
    """

    identity: ProcessIdentity
    argv: tuple[str, ...]
    binary: str
    directory: str
    files: Mapping[int, str]
    uid: int
    is_apart: bool
    is_daemon: bool

    def absolute(self, path: str) -> str:
        """Make a path absolute as QEMU understood it; one that it still has open is surer than its directory."""
        if path.startswith("/"):
            return os.path.normpath(path)
        guess = os.path.normpath(f"{self.directory}/{path}")
        held = {file for file in self.files.values() if file.endswith(f"/{os.path.normpath(path)}")}
        return held.pop() if len(held) == 1 and guess not in held else guess


async def find_process(path: Path) -> ProcessIdentity:
    """Find the process that serves a QMP socket, and wait for its greeting.

    Raises:
        InvalidRequest: the path is not absolute, or is not a socket.
        NotFound: there is nothing at the path.
        WrongState: the agent may not use it, it is not a QMP socket, or its process cannot be told.
        QemuInUse: another client is attached.
        Unreachable: nobody listens.
    """
    _check_socket(path)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(0)
        try:
            peer.connect(str(path))
        except BlockingIOError as error:
            raise _in_use(path) from error
        except PermissionError as error:
            raise _forbidden(path) from error
        except OSError as error:
            text = f"QMP socket {path}: {error.strerror}: no QEMU of this host listens there"
            raise Unreachable(text, reason="QMP_NOT_CONNECTED", path=path) from error
        await _check_greeting(peer, path)
    # Whoever listened before QEMU did is the peer of the first client; only after the greeting it is QEMU for sure.
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(0)
        peer.connect(str(path))
        pid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
    if pid <= 0:
        text = f"QMP socket {path}: its process lives in another pid namespace, where the agent cannot see it"
        raise WrongState(text, reason="PROCESS_UNKNOWN")
    return ProcessIdentity.of(pid)


def look_at(identity: ProcessIdentity) -> Found:
    """Read what the kernel knows of a process.

    Raises:
        WrongState: the agent may not look, or it is gone.
    """
    place = Path(f"/proc/{identity.pid}")
    try:
        argv = [os.fsdecode(word) for word in (place / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")]
        here = str((place / "cwd").readlink())
        is_daemon = any(word.lstrip("-") == "daemonize" for word in argv)
        return Found(
            identity=identity,
            argv=tuple(argv),
            binary=str((place / "exe").readlink()).removesuffix(" (deleted)"),
            directory=_first_directory(place, here) if is_daemon else here,
            files=_open_files(place),
            uid=_effective_user(place),
            is_apart=(place / "ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
            or str((place / "root").readlink()) != "/",
            is_daemon=is_daemon,
        )
    except OSError as error:
        raise WrongState(
            f"process {identity.pid}: {error.strerror}: the agent has to be root, or the user of this QEMU",
            reason="PROCESS_NOT_READABLE",
            pid=identity.pid,
        ) from error


def _check_socket(path: Path) -> None:
    if not path.is_absolute():
        raise InvalidRequest(f"QMP socket {path}: an absolute path on the VM's host is wanted", reason="VALUE_INVALID")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise NotFound(f"QMP socket {path} does not exist on this host", reason="QMP_SOCKET_MISSING", path=path) from error
    except OSError as error:
        raise WrongState(f"QMP socket {path}: {error.strerror}", reason="QMP_SOCKET_FORBIDDEN", path=path) from error
    if not stat.S_ISSOCK(mode):
        raise InvalidRequest(
            f"{path} is not a socket; QEMU makes one with -qmp unix:PATH,server=on,wait=off", reason="NOT_A_QMP_SOCKET", path=path
        )


async def _check_greeting(peer: socket.socket, path: Path) -> None:
    loop = asyncio.get_running_loop()
    text = b""
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            while b"\n" not in text and len(text) < _MAX_GREETING_BYTES:
                more = await loop.sock_recv(peer, _MAX_GREETING_BYTES)
                if not more:
                    break
                text += more
    except TimeoutError as error:
        raise _in_use(path) from error
    except OSError as error:
        raise Unreachable(f"QMP socket {path}: {error.strerror}", reason="QMP_NOT_CONNECTED", path=path) from error
    first = text.splitlines()[0].strip() if text.strip() else b""
    with suppress(ValueError):
        greeting = parse_json(first)
        if isinstance(greeting, dict) and "QMP" in greeting:
            return
    if first == b"{":
        why = "it has pretty=on (or is a -qmp-pretty), which the agent does not read; give QEMU a monitor without"
    elif b"monitor" in first:
        why = "it is a human monitor; a monitor with mode=control (-qmp) is wanted"
    else:
        why = f"it does not greet as QMP but says {first[:40].decode(errors='replace')!r}"
    raise WrongState(f"socket {path}: {why}", reason="NOT_A_QMP_SOCKET", path=path)


def _in_use(path: Path) -> QemuInUse:
    return QemuInUse(
        f"QMP socket {path}: QEMU did not greet in {GREETING_TIMEOUT_S:g} s: another client is attached (a QMP socket has one "
        "at a time) or QEMU is stopped; end that client, or give QEMU a second -qmp",
        path=path,
    )


def _forbidden(path: Path) -> WrongState:
    return WrongState(
        f"QMP socket {path}: permission denied; it belongs to user {path.stat().st_uid}, the agent is user {os.geteuid()}",
        reason="QMP_SOCKET_FORBIDDEN",
        path=path,
    )


def _first_directory(place: Path, here: str) -> str:
    """Tell where a daemon was before it went to `/`: its shell left it in the environment."""
    for word in (place / "environ").read_bytes().split(b"\0"):
        if word.startswith(b"PWD=/"):
            return os.fsdecode(word.removeprefix(b"PWD="))
    return here


def _open_files(place: Path) -> dict[int, str]:
    found = {}
    for entry in (place / "fd").iterdir():
        with suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def _effective_user(place: Path) -> int:
    for line in (place / "status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return -1
