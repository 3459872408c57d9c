"""Image files on the host: what they are, whether there is room, and making and removing the one that a job writes.

A file of ours is made under a name that nobody else chooses, put on record with its inode, and only then linked to the place that
the user named. So what is there by then, or comes there later, is never taken for ours. All functions block for a moment.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from common.errors import WrongState
from common.records import sync_directory

if TYPE_CHECKING:
    from agent.guest_user import GuestUser

FORMATS: Final = ("qcow2", "raw")
_MAGIC: Final = b"QFI\xfb"
# Magic, version, place and length of the backing file's name, cluster bits, virtual size, encryption, entries and place of the
# first-level table. Source: docs/interop/qcow2.txt.
_HEADER: Final = struct.Struct(">4sIQIIQIIQ")
_ENTRY_BYTES: Final = 8
_MOST_OF_A_TABLE: Final = 32 << 20  # QCOW_MAX_L1_SIZE
_LONGEST_NAME: Final = 1023
_PERMISSIONS: Final = 0o777
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image that is there.

    Attributes:
        format: `qcow2`, or `raw` for all else.
        backing_path: what it names as its backing file, absolute; empty without.
        has_clusters: it has, or had, data of its own, so that not all of what it stands on is seen through it.
    """

    format: str
    virtual_size_bytes: int
    backing_path: str
    has_clusters: bool = True


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file that we made; device and inode say which one, 0 before it is there."""

    path: str
    part_path: str
    device: int = 0
    inode: int = 0


def find_image(path: Path) -> FoundImage:
    """Look at an image.

    Raises:
        WrongState: it is not there, cannot be read and written, or is neither a file nor a block device.
    """
    try:
        with path.open("r+b") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise WrongState(f"{path} is neither a file nor a block device", reason="FILE_NOT_USABLE", path=path)
            head = file.read(_HEADER.size)
            is_qcow2 = head.startswith(_MAGIC) and len(head) == _HEADER.size
            backing_path = _read_backing(file, head, path) if is_qcow2 else ""
            has_clusters = not is_qcow2 or _has_clusters(file, head)
            size_bytes = file.seek(0, os.SEEK_END)
    except FileNotFoundError as error:
        raise WrongState(f"{path} does not exist on this host", reason="FILE_MISSING", path=path) from error
    except OSError as error:
        raise WrongState(f"{path} cannot be read and written: {error.strerror}", reason="FILE_NOT_ACCESSIBLE", path=path) from error
    if is_qcow2:
        return FoundImage("qcow2", _HEADER.unpack(head)[5], backing_path, has_clusters)
    return FoundImage("raw", size_bytes, "")


def _read_backing(file: BinaryIO, head: bytes, path: Path) -> str:
    _, _, offset, length, *_ = _HEADER.unpack(head)
    file.seek(offset)
    name = file.read(min(length, _LONGEST_NAME)).decode(errors="replace") if offset else ""
    return os.path.join(path.parent, name) if name else ""  # noqa: PTH118 -- what the image says, absolute or not


def _has_clusters(file: BinaryIO, head: bytes) -> bool:
    """Say whether any part of the first-level table leads to clusters."""
    *_, entries, offset = _HEADER.unpack(head)
    file.seek(offset)
    return any(file.read(min(entries * _ENTRY_BYTES, _MOST_OF_A_TABLE)))


def is_device(path: str) -> bool:
    """Say whether a path is a block device."""
    return Path(path).is_block_device()


def check_place(path: Path, hint: str = "") -> None:
    """Require a directory with nothing under this name; `hint` is what else could be done.

    Raises:
        WrongState: there is no such directory, or there is something.
    """
    if not path.parent.is_dir():
        raise WrongState(f"{path}: its directory does not exist on this host", reason="FILE_MISSING", path=path)
    if os.path.lexists(path):
        raise WrongState(f"{path} exists already; choose another name{hint}", reason="FILE_EXISTS", path=path)


def check_room(path: Path, needed_bytes: int, what: str) -> None:
    """Require room on the file system of a file; block devices have the room that they have.

    Raises:
        WrongState: there is less; the text has both numbers.
    """
    if path.is_block_device():
        return
    found = os.statvfs(path if path.exists() else path.parent)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < needed_bytes:
        raise WrongState(
            f"{path.parent}: {what} needs up to {_mib(needed_bytes)}, {_mib(free_bytes)} are free there",
            reason="NOT_ENOUGH_SPACE",
            path=path,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


def part_of(path: Path, job_id: str) -> Path:
    """Name the file that is ours before it has its place."""
    return path.with_name(f".{path.name[:200]}.{job_id[:8]}.part")


def make(made: MadeFile, like: Path, guests: GuestUser) -> MadeFile:
    """Make the file under its first name, with owner and permissions of `like`; the record of what this returns comes next."""
    descriptor = os.open(made.part_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _adopt_owner(descriptor, like, guests)
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return MadeFile(made.path, made.part_path, found.st_dev, found.st_ino)


def put_in_place(made: MadeFile) -> None:
    """Give a made file the name that the user chose.

    Raises:
        WrongState: something is there by now.
    """
    try:
        Path(made.path).hardlink_to(made.part_path)
    except FileExistsError as error:
        raise WrongState(f"{made.path} exists already", reason="FILE_EXISTS", path=made.path) from error
    except OSError as error:
        raise WrongState(f"{made.path} cannot be made: {error.strerror}", reason="FILE_FAILED", path=made.path) from error
    Path(made.part_path).unlink()
    sync_directory(Path(made.path).parent)


def discard(made: MadeFile) -> None:
    """Ensure that a file of ours is gone; what is there and is not ours stays."""
    with suppress(FileNotFoundError):
        Path(made.part_path).unlink()
    if made.inode and is_ours(made):
        Path(made.path).unlink()


def is_ours(made: MadeFile) -> bool:
    """Say whether what is in the user's place is the file that we made."""
    try:
        found = os.lstat(made.path)
    except OSError:
        return False
    return bool(made.inode) and (found.st_dev, found.st_ino) == (made.device, made.inode)


def _adopt_owner(descriptor: int, like: Path, guests: GuestUser) -> None:
    """Let QEMU open the file as it opens the image that it has: where guests have a user of their own, that is not the agent's."""
    try:
        found = like.stat()
    except OSError:
        found = None
    if found is not None and stat.S_ISREG(found.st_mode):
        os.fchmod(descriptor, found.st_mode & _PERMISSIONS)
        if os.geteuid() == 0:
            os.fchown(descriptor, found.st_uid, found.st_gid)
    elif guests.name:
        os.fchown(descriptor, guests.uid, guests.gid)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"
