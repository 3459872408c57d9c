"""Images of this host of which another host has a newer copy, since a guest went there with its disks.

A mark is written before the guest may run elsewhere, and goes when it is proved that it never did, when an operator starts the
older image all the same, or when a guest comes back into it. It stays when the VM is undefined or was transient: what counts is the
image, whoever names it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.vm.host_files import written_images
from common.codec import decode, encode_fields
from common.errors import FerryError, WrongState
from common.records import BrokenRecord, get_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.store import Store
    from agent.vm.definition import Definition

RECORD_KIND = "older-disk"


@dataclass(frozen=True, slots=True)
class OlderDisk:
    """An image that is older than a copy of it.

    Attributes:
        disk: its name in the VM.
        path: of the image, on this host.
        key: what it is known by, see `key_of`.
        inode: of the image; 0 of a block device.
        newer_host, newer_path: where the newer copy is.
        vm: name of the VM on that host.
        is_kept_there: whether that host keeps the definition of the VM.
        migration_id: of the migration that made the copy.
    """

    disk: str
    path: str
    key: str
    inode: int
    newer_host: str
    newer_path: str
    vm: str
    is_kept_there: bool
    migration_id: str

    @property
    def text(self) -> str:
        """Say which disk is older than which, in a clause."""
        return (
            f"disk {self.disk}: {self.path} on this host is older than {self.newer_path} on {self.newer_host}, where its guest "
            f"went (migration {self.migration_id[:8]})"
        )

    @property
    def advice(self) -> str:
        """Say how the guest is started with its newest disks."""
        if not self.is_kept_there:
            return f"define the VM on {self.newer_host} with {self.newer_path} and start it there"
        return f"start it there: ferry vm start {self.vm} --host {self.newer_host}"


class OlderDisks:
    """The marks of this host."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self, disks: Iterable[OlderDisk]) -> None:
        """Write that newer copies are, or are about to be, elsewhere; durable on return."""
        for disk in disks:
            self._store.save_older_disk(disk.key, encode_fields(disk))

    def check(self, definition: Definition) -> None:
        """Refuse to start a VM with an image that is older than a copy of it.

        Raises:
            WrongState: there is one; the text says where the newer copy is and how to start that.
        """
        if found := self.of(definition):
            more = f" (and {', '.join(one.disk for one in found[1:])} likewise)" if found[1:] else ""
            raise WrongState(
                f"VM {definition.name}: {found[0].text}{more}; {found[0].advice}; --force starts it here with the older disk, "
                "without what was written since",
                reason="DISK_OLDER",
                vm=definition.name,
                host=found[0].newer_host,
                path=found[0].newer_path,
            )

    def of(self, definition: Definition) -> list[OlderDisk]:
        """List the images of a definition that are older than a copy.

        Raises:
            WrongState: what is on record of one cannot be read.
        """
        found = [self._find(image.path) for image in written_images(definition)]
        return [one for one in found if one is not None]

    def forget(self, definition: Definition) -> None:
        """Let the images of a definition count as the newest: its guest writes to them."""
        for image in written_images(definition):
            self._store.remove_older_disk(key_of(image.path))

    def forget_migration(self, migration_id: str) -> None:
        """Take back what was marked for a migration whose guest never ran elsewhere."""
        for disk in self._all():
            if disk.migration_id == migration_id:
                self._store.remove_older_disk(disk.key)

    def sweep(self) -> None:
        """Forget images that are gone, as far as that can be told: storage that is away has no directory."""
        for disk in self._all():
            if Path(disk.path).parent.is_dir() and not _is_there(disk):
                self._store.remove_older_disk(disk.key)

    def _find(self, path: str) -> OlderDisk | None:
        try:
            record = self._store.find_older_disk(key_of(path))
            disk = None if record is None else decode(OlderDisk, record, where=RECORD_KIND)
        except FerryError as error:
            raise BrokenRecord(f"{path}: whether another host has a newer copy cannot be read: {error.text}", path=path) from error
        return disk if disk is not None and _is_there(disk) else None

    def _all(self) -> Iterator[OlderDisk]:
        """List what can be read; a record that cannot stays, and holds its image back."""
        for path in sorted(self._store.older_disks_dir.glob("*.json")):
            try:
                yield decode(OlderDisk, get_record(path, kind=RECORD_KIND, version=1), where=RECORD_KIND)
            except FerryError:
                continue


def key_of(path: str) -> str:
    """Return what an image is known by: a file by its real path; a block device, whose names may change, by what its kernel says.

    Source: sysfs of device mapper, of SCSI and NVMe disks, of virtio disks and of loop devices.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return os.path.realpath(path)
    if not stat.S_ISBLK(found.st_mode):
        return os.path.realpath(path)
    about = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}")
    for name in ("dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "loop/backing_file"):
        with suppress(OSError):
            if identity := (about / name).read_text(encoding="utf-8", errors="replace").strip():
                return f"device {name} {identity}"
    return path


def inode_of(path: str) -> int:
    """Tell an image from another that takes its place; 0 of a block device, and of what is not there."""
    try:
        return Path(path).stat().st_ino if Path(path).is_file() else 0
    except OSError:
        return 0


def _is_there(disk: OlderDisk) -> bool:
    return inode_of(disk.path) == disk.inode
