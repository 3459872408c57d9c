"""Finding the cgroup directory in which this host's guests get groups with CPU shares.

Source: cgroups(7), proc_pid_mountinfo(5), proc_pid_cgroup(5), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.cgroup.group import Hierarchy, Version
from common.errors import WrongState

CONTROLLER: Final = "cpu"
_SELF: Final = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class _Mount:
    version: Version
    root: str
    point: Path


def open_hierarchy(root: Path | None) -> Hierarchy:
    """Take the configured directory, or find one: v1 if its controller `cpu` is mounted, else v2 if that has it.

    Raises:
        WrongState: there is no such controller; the text names what is missing.
    """
    found = _configured(root) if root is not None else find(_read("mountinfo"), _read("cgroup"))
    if found is None:
        raise WrongState(
            "this host has no cgroup controller `cpu`: v1 is not mounted with it, and v2 has it not in cgroup.controllers",
            reason="CGROUP_MISSING",
        )
    return found


def find(mountinfo: str, membership: str) -> Hierarchy | None:
    """Choose from the text of /proc/self/mountinfo and /proc/self/cgroup.

    On v1 groups are made below this process's own; on v2, where a group has either processes or children, beside it.
    """
    mounts = {mount.version: mount for mount in _mounts(mountinfo)}
    for version in (Version.V1, Version.V2):
        mount, own = mounts.get(version), _own_path(membership, version)
        if mount is None or own is None:
            continue
        base = mount.point / own.removeprefix(mount.root).lstrip("/")
        if version is Version.V2 and base != mount.point:
            base = base.parent
        if version is Version.V1 or _has_controller(base):
            return Hierarchy(version, base)
    return None


def _configured(root: Path) -> Hierarchy:
    if (root / "cgroup.controllers").exists():
        if _has_controller(root):
            return Hierarchy(Version.V2, root)
        raise WrongState(f"cgroup_root {root}: `cpu` is not in its cgroup.controllers", reason="CGROUP_MISSING", path=root)
    if (root / "cpu.shares").exists():
        return Hierarchy(Version.V1, root)
    raise WrongState(f"cgroup_root {root}: neither a v1 group with cpu.shares nor a v2 group", reason="CGROUP_MISSING", path=root)


def _has_controller(directory: Path) -> bool:
    try:
        return CONTROLLER in (directory / "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError:
        return False


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        place, _, kind = line.partition(" - ")
        fields, (fstype, _, options) = place.split(), kind.split(" ", 2)
        root, point = fields[3], Path(fields[4].replace("\\040", " "))
        if fstype == "cgroup" and CONTROLLER in options.split(","):
            yield _Mount(Version.V1, root, point)
        elif fstype == "cgroup2":
            yield _Mount(Version.V2, root, point)


def _own_path(membership: str, version: Version) -> str | None:
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if version is Version.V1 and CONTROLLER in controllers.split(","):
            return path
        if version is Version.V2 and number == "0" and not controllers:
            return path
    return None


def _read(name: str) -> str:
    return (_SELF / name).read_text(encoding="utf-8", errors="replace")
