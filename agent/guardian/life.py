"""The agent's side of its guardians: their start, what they are told, and their end."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Final

from agent.guardian.charge import BEAT, Charge
from agent.qemu.identity import NoSuchProcess, ProcessIdentity

MODULE: Final = "agent.guardian"


class Guardian:
    """A guardian that was started; `end` is to be called whatever happens."""

    def __init__(self, line: socket.socket, child: subprocess.Popen[bytes]) -> None:
        self._line = line
        self._child = child

    def tell(self, charge: Charge, connection: socket.socket | None) -> None:
        """Tell it what it guards, and give it a copy of the agent's connection to QEMU, to be ended when the agent is away.

        One that is gone, or has more to read than it can, is what a move without a guardian is.
        """
        fds = [] if connection is None or connection.fileno() < 0 else [connection.fileno()]
        with suppress(OSError):
            socket.send_fds(self._line, [charge.to_message()], fds)

    def beat(self) -> None:
        """Say that the agent is there; to be said at least five times in `ear.STOPPED_AFTER_S`."""
        with suppress(OSError):
            self._line.send(BEAT)

    def leave(self) -> None:
        """Let it do its duty: this agent goes."""
        self._line.close()

    def end(self) -> None:
        """End it; what it does may be broken off anywhere."""
        self._child.kill()
        self._child.wait()
        self._line.close()


@dataclass(frozen=True, slots=True)
class Guardians:
    """How an agent starts guardians.

    Attributes:
        state_dir: by which it knows its own again.
        certificates: authority, certificate and key of this host's agent; empty for plain text.
    """

    state_dir: Path
    certificates: tuple[str, ...]

    def start(self) -> Guardian:
        """Start one, which is ready in some 0.1 s; what it is told until then it hears then.

        Raises:
            OSError: the program cannot be run.
        """
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.settimeout(0)
        with theirs:
            try:
                child = subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-m", MODULE, str(self.state_dir), str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                line.close()
                raise
        return Guardian(line, child)

    def end_left(self) -> int:
        """End those that an earlier run of this agent has left, so that this one is QEMU's client; say how many there were."""
        wanted = [MODULE.encode(), str(self.state_dir).encode()]
        ended = 0
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal():
                with suppress(OSError, NoSuchProcess):
                    identity = ProcessIdentity.of(int(directory.name))
                    if (directory / "cmdline").read_bytes().split(b"\0")[2:4] == wanted:
                        ended += identity.send_signal(SIGKILL)
        return ended
