"""The system user that QEMU runs as, where that is not the agent's own.

QEMU is put into the user by what goes before its command line, so that what else goes before it is still done by the agent's user.
Images and other files of definitions stay whose they are: this user has to be able to open them.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

_PASSABLE = 0o710
_SHARED = 0o1770


@dataclass(frozen=True, slots=True)
class GuestUser:
    """A user of this host with its groups; without a name it is the agent's own and nothing has to be done."""

    name: str = ""
    uid: int = -1
    gid: int = -1
    groups: tuple[int, ...] = ()

    @classmethod
    def named(cls, name: str) -> GuestUser:
        """Look a user up; an empty name is the agent's own.

        Raises:
            InvalidRequest: there is no such user, it is root, or this process may not act for others.
        """
        if not name:
            return cls()
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise InvalidRequest(f"qemu_user {name!r}: this host has no such user", reason="CONFIG_INVALID") from error
        if entry.pw_uid == 0:
            raise InvalidRequest(f"qemu_user {name!r} is root: name an unprivileged user", reason="CONFIG_INVALID")
        if os.geteuid() != 0:
            raise InvalidRequest(
                f"qemu_user {name!r}: only an agent that runs as root can run QEMU as another user; leave it empty",
                reason="CONFIG_INVALID",
            )
        return cls(name, entry.pw_uid, entry.pw_gid, tuple(sorted(os.getgrouplist(name, entry.pw_gid))))

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command line so that the program runs as this user, with no capability. Source: setpriv(1)."""
        if not self.name:
            return ()
        groups = ",".join(str(group) for group in self.groups)
        return ("setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), "--groups", groups, "--inh-caps=-all", "--")

    def own(self, *paths: Path) -> None:
        """Give files to the user."""
        if self.name:
            for path in paths:
                os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def admit(self, *directories: Path) -> None:
        """Let the user pass through directories, without seeing what is in them."""
        self._open(directories, _PASSABLE)

    def let_make(self, directory: Path) -> None:
        """Let the user make files in a directory and remove its own."""
        self._open((directory,), _SHARED)

    def _open(self, directories: tuple[Path, ...], mode: int) -> None:
        if self.name:
            for directory in directories:
                os.chown(directory, -1, self.gid)
                directory.chmod(mode)
