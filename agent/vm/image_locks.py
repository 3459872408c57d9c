"""No image is used by two running VMs of this agent if one of them writes to it, whatever the file system makes of locks.

Files are compared by what they are, not by their paths. What a running QEMU uses is what it has open, backing files and images that
were attached later included, and what its definition names, since a QEMU that has just been started has opened nothing yet.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.vm.host_files import Use, host_files
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.vm.definition import Definition
    from agent.vm.host_files import HostFile
    from agent.vm.running import Running
    from agent.vm.vm import Vm

_FLAGS = re.compile(r"^flags:\s*(?P<octal>[0-7]+)$", re.MULTILINE)
_Key = tuple[int, int]


def refuse_used_images(definition: Definition, others: Iterable[Vm]) -> None:
    """Refuse a start with an image that a running VM uses, if either writes to it.

    Raises:
        WrongState: there is one; the text names the file and the VM.
    """
    wanted = {key: file for file in _files(definition) for key in _keys(file.path)}
    for other in others:
        if other.uuid == definition.uuid or other.running is None:
            continue
        shared = {key for file in _files(other.running.definition) if file.is_shareable for key in _keys(file.path)}
        for key, is_written in _used(other.running):
            file = wanted.get(key)
            if file is None or not (is_written or file.use is Use.WRITE) or (file.is_shareable and key in shared):
                continue
            raise WrongState(
                f"{file.what}: {file.path} is used by VM {other.name}, which is running here; two VMs would destroy it",
                reason="IMAGE_IN_USE",
                what=file.what,
                path=file.path,
                vm=other.name,
            )


def find_user(path: str, vms: Iterable[Vm]) -> Vm | None:
    """Find a running VM that has an image open, or names it, in whatever way."""
    wanted = set(_keys(path))
    return next((vm for vm in vms if vm.running is not None and any(key in wanted for key, _ in _used(vm.running))), None)


def has_open(pid: int, path: str) -> bool | None:
    """Say whether a process has what lies at a path open; None where that cannot be told."""
    wanted, found = set(_keys(path)), {key for key, _ in _open_files(pid)}
    return None if not found or not wanted else bool(wanted & found)


def _files(definition: Definition) -> Iterator[HostFile]:
    return (file for file in host_files(definition) if file.use in (Use.READ, Use.WRITE))


def _used(running: Running) -> Iterator[tuple[_Key, bool]]:
    for file in _files(running.definition):
        for key in _keys(file.path):
            yield key, file.use is Use.WRITE
    if running.process is not None:
        yield from _open_files(running.process.pid)


def _open_files(pid: int) -> Iterator[tuple[_Key, bool]]:
    """List what a process has open; of one that may not be looked into, nothing. Source: proc_pid_fdinfo(5)."""
    directory = Path(f"/proc/{pid}")
    with suppress(OSError):
        for link in (directory / "fd").iterdir():
            with suppress(OSError):
                for key in _keys(str(link)):
                    flags = _FLAGS.search((directory / "fdinfo" / link.name).read_text(encoding="ascii"))
                    yield key, flags is not None and int(flags["octal"], 8) & os.O_ACCMODE != os.O_RDONLY


def _keys(path: str) -> Iterator[_Key]:
    """Identify a file or a block device; other things and missing files have no identity."""
    with suppress(OSError):
        found = Path(path).stat()
        if stat.S_ISREG(found.st_mode):
            yield found.st_dev, found.st_ino
        elif stat.S_ISBLK(found.st_mode):
            yield -1, found.st_rdev
