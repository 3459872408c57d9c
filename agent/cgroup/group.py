"""One guest's cgroup: made with its shares, entered by its QEMU before that runs, removed when it has ended.

    base/ferry/<name>/      cpu.shares (v1) or cpu.weight (v2)

Source: Documentation/admin-guide/cgroup-v1, cgroup-v2.rst; kernel/sched/core.c for what is clamped and refused.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from common.errors import InvalidRequest, WrongState

PARENT: Final = "ferry"
# sh writes its own pid and then becomes QEMU, so that no thread of it ever was elsewhere.
_ENTER: Final = 'echo $$ >"$0" && exec "$@"'


class Version(Enum):
    """Which cgroup interface; its file, its range, and what a group has that nobody changed."""

    V1 = "v1"
    V2 = "v2"

    @property
    def file_name(self) -> str:
        """File that holds the shares."""
        return "cpu.shares" if self is Version.V1 else "cpu.weight"

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and most; v1 clamps what is beyond, v2 refuses it."""
        return (2, 262144) if self is Version.V1 else (1, 10000)

    @property
    def default(self) -> int:
        """What every other group has."""
        return 1024 if self is Version.V1 else 100


def convert(shares: int, of: Version, to: Version) -> int:
    """Return the shares that stand in the same relation to the default of the other version, within its bounds."""
    if of is to:
        return shares
    least, most = to.bounds
    return min(max(round(shares * to.default / of.default), least), most)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups are made."""

    version: Version
    base: Path

    def group(self, name: str) -> Group:
        """Name a group; nothing is made."""
        return Group(self.version, self.base / PARENT / name)

    def make_parent(self) -> None:
        """Ensure that groups with shares can be made.

        Raises:
            WrongState: the kernel or the file system refuses; the text names the directory.
        """
        parent = self.base / PARENT
        try:
            if self.version is Version.V2:
                _write(self.base / "cgroup.subtree_control", "+cpu")
            parent.mkdir(exist_ok=True)
            if self.version is Version.V2:
                _write(parent / "cgroup.subtree_control", "+cpu")
        except OSError as error:
            raise WrongState(
                f"cgroup {parent} cannot be made: {error.strerror}; cgroup_root names another place",
                reason="CGROUP_NOT_WRITABLE",
                path=parent,
            ) from error


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one QEMU."""

    version: Version
    path: Path

    def make(self) -> None:
        """Ensure that the group exists; its parent does.

        Raises:
            WrongState: it cannot be made.
        """
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise WrongState(
                f"cgroup {self.path} cannot be made: {error.strerror}", reason="CGROUP_NOT_WRITABLE", path=self.path
            ) from error

    def set_shares(self, shares: int) -> int:
        """Write the shares and return what the kernel made of them.

        Raises:
            InvalidRequest: the kernel refuses the number.
            WrongState: the group is gone.
        """
        file = self.path / self.version.file_name
        try:
            _write(file, str(shares))
            return int(file.read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise WrongState(f"cgroup {self.path} is gone", reason="CGROUP_MISSING", path=self.path) from error
        except OSError as error:
            least, most = self.version.bounds
            raise InvalidRequest(
                f"cpu shares {shares}: refused by cgroup {self.version.value} of this host ({error.strerror}); "
                f"{least} to {most} are possible",
                reason="SHARES_OUT_OF_RANGE",
                shares=shares,
                least=least,
                most=most,
            ) from error

    def entering(self) -> tuple[str, ...]:
        """Return the words before a command line that put its process into the group before it runs."""
        return ("/bin/sh", "-c", _ENTER, str(self.path / "cgroup.procs"))

    def add(self, pid: int) -> None:
        """Move a process with all its threads into the group.

        Raises:
            WrongState: the process is gone or the kernel refuses.
        """
        try:
            _write(self.path / "cgroup.procs", str(pid))
        except OSError as error:
            raise WrongState(
                f"process {pid} cannot be moved into cgroup {self.path}: {error.strerror}", reason="CGROUP_NOT_WRITABLE", pid=pid
            ) from error

    def remove(self) -> bool:
        """Remove the group; False while something still runs in it."""
        with suppress(FileNotFoundError):
            try:
                self.path.rmdir()
            except OSError:
                return False
        return True


def _write(path: Path, text: str) -> None:
    """Write what a kernel file takes in one call."""
    with path.open("w", encoding="ascii") as file:
        file.write(text)
