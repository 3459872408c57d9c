"""Starting a QEMU that outlives the agent, and learning how one ended.

QEMU is put into a session of its own with nothing of the agent but two files: its QMP socket, bound here before it
exists and listened on by QEMU, and a log that stderr is appended to. The agent's death, by SIGKILL too, means nothing
to it. While the agent lives it is QEMU's parent and collects it, so that no zombie stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.qemu.identity import ProcessIdentity
from common.errors import Bug, NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from agent.store import VmDirectory

# Marks a process as ours before anyone could write down its pid; the value is chosen anew for every start.
LAUNCH_VARIABLE = "FERRY_LAUNCH"
KILL_TIMEOUT_S = 10.0
MAX_LOG_BYTES = 4 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_MESSAGE = re.compile(r"(?:\S*/)?(?:qemu[\w.-]*|kvm): (?P<text>.*)")
_WARNING = re.compile(r"(?:-\S.*?: )?warning: ")
_DEPRECATED = re.compile(r"(?:-\S.*?: )?warning: .*\bdeprecated\b")


class QemuNotStarted(WrongState):
    """QEMU did not come up; no process is left."""

    default_reason = "QEMU_NOT_STARTED"


@dataclass(frozen=True, slots=True)
class Launched:
    """A QEMU that has been started and may still refuse its command line.

    Attributes:
        log_offset_bytes: where in the log its own messages begin.
    """

    identity: ProcessIdentity
    argv: tuple[str, ...]
    log_offset_bytes: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended; both None when somebody else collected it."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        """Say it in words."""
        if self.signal is not None:
            return f"killed by signal {self.signal} ({signal.strsignal(self.signal)})"
        return "ended" if self.code is None else f"exited with code {self.code}"


def launch(
    build: Callable[[int], tuple[str, ...]],
    directory: VmDirectory,
    *,
    token: str,
    passed_fds: Collection[int] = (),
) -> Launched:
    """Start what `build` makes of the descriptor of the QMP socket, in the VM's own directory: no relative path leads elsewhere.

    Returns as soon as the program runs, in one or two milliseconds: that it accepts its command line is known once it
    answers on QMP. The caller sees to it that no other QEMU of this VM runs.

    Raises:
        QemuNotStarted: the program cannot be run.
    """
    rotate_log(directory.log_path)
    with _bound_socket(directory.qmp_path) as qmp_socket, directory.log_path.open("ab") as log:
        directory.log_path.chmod(0o600)
        offset_bytes = log.tell()
        argv = build(qmp_socket.fileno())
        try:
            child = subprocess.Popen(  # noqa: S603 - an allowed emulator, its arguments built by `argv`
                argv,
                pass_fds=(qmp_socket.fileno(), *passed_fds),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory.run_dir,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", LAUNCH_VARIABLE: token},
            )
        except OSError as error:
            directory.qmp_path.unlink(missing_ok=True)
            raise QemuNotStarted(f"{argv[0]}: {error.strerror}", path=argv[0]) from error
    try:
        identity = ProcessIdentity.of(child.pid)
    except NotFound as error:  # our own child cannot go before it is collected
        raise Bug(f"process {child.pid} vanished") from error
    # `reap` collects it; without this the object would claim a child that was never waited for.
    child.returncode = 0
    return Launched(identity, argv, offset_bytes)


@contextlib.contextmanager
def _bound_socket(path: Path) -> Iterator[socket.socket]:
    """Bind a socket for QEMU to listen on, in place of one that a dead QEMU left.

    Our copy is closed at the end: else connects to a dead QEMU would succeed and hang.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(path))
        yield bound


def rotate_log(path: Path) -> None:
    """Put a log that has grown long aside; one older one is kept."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.rename(path.with_suffix(".log.1"))


def reap(identity: ProcessIdentity) -> Exit:
    """Collect an ended child; of a process that is not our child nothing can be learnt."""
    try:
        status = os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return Exit(None, None)
    if status is None:
        return Exit(None, None)
    if status.si_code == os.CLD_EXITED:
        return Exit(status.si_status, None)
    return Exit(None, status.si_status)


async def kill(identity: ProcessIdentity) -> None:
    """Ensure that a process has ended, by SIGKILL.

    Raises:
        WrongState: it is still there; it hangs in the kernel.
    """
    identity.send_signal(signal.SIGKILL)
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await identity.wait_exit()
    except TimeoutError as error:
        raise WrongState(
            f"process {identity.pid} is still there {KILL_TIMEOUT_S} s after SIGKILL", reason="PROCESS_STUCK"
        ) from error


def find_launched(token: str) -> ProcessIdentity | None:
    """Find the process that was started with a token, when its pid was not written down any more."""
    wanted = f"{LAUNCH_VARIABLE}={token}".encode()
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        with contextlib.suppress(OSError, NotFound):
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                identity = ProcessIdentity.of(int(directory.name))
                if identity.is_alive():
                    return identity
    return None


def find_in(directory: Path) -> tuple[ProcessIdentity, str] | None:
    """Find the QEMU that was started in a directory of its own, and its token, when nothing else is known of it."""
    mark = f"{LAUNCH_VARIABLE}=".encode()
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal():
            continue
        with contextlib.suppress(OSError, NotFound):
            if (place / "cwd").readlink() != directory:
                continue
            words = (place / "environ").read_bytes().split(b"\0")
            token = next((word.removeprefix(mark) for word in words if word.startswith(mark)), None)
            identity = ProcessIdentity.of(int(place.name))
            if token is not None and identity.is_alive():
                return identity, token.decode(errors="replace")
    return None


def argv_of(identity: ProcessIdentity) -> tuple[str, ...]:
    """Read the command line of a process; empty where it cannot be read."""
    try:
        words = Path(f"/proc/{identity.pid}/cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
    except OSError:
        return ()
    return tuple(os.fsdecode(word) for word in words)


def last_words(log_path: Path, offset_bytes: int) -> str:
    """Read the last message of a QEMU from its log, without the program's name; empty when it said nothing.

    A message may have several lines; warnings count only when there is nothing else, and never those that something is deprecated.
    """
    lines = _read_tail(log_path, offset_bytes)
    messages: list[str] = []
    for line in lines:
        match = _MESSAGE.fullmatch(line)
        if match is not None:
            messages.append(match["text"])
        elif messages:
            messages[-1] = f"{messages[-1]}; {line}"
        else:
            messages.append(line)
    errors = [message for message in messages if not _WARNING.match(message)]
    warnings = [message for message in messages if not _DEPRECATED.match(message)]
    return (errors or warnings or [""])[-1]


def _read_tail(path: Path, offset_bytes: int) -> list[str]:
    try:
        with path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(offset_bytes, end - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
