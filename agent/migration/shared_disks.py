"""Whether the destination's images are the very ones of the source: proved by markers, or taken on the user's word.

A marker is on record before it is there, so that an agent that is started again removes what nobody else will.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.migration.order import DiskMarker, HostIdentity
from agent.vm.data_files import files_beside
from agent.vm.definition import Definition
from agent.vm.disk_images import disk_images
from agent.vm.host_files import HostFile, written_images
from common.errors import WrongState
from common.findings import Risk
from common.storage import NO_SPACE, StorageFailed

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from agent.store import Store

MARKER_PREFIX = ".ferry-"
_log = structlog.get_logger()


class Sight(Enum):
    """What the destination sees of an image: the very same one, another one or none, or that cannot be told."""

    SAME = "same"
    OTHER = "other"
    UNKNOWN = "unknown"


def write_markers(
    definition: Definition, store: Store, *, force: bool, may_copy: bool = False
) -> tuple[tuple[DiskMarker, ...], tuple[str, ...]]:
    """Put a marker beside each image that the guest writes to; return them, and what is a risk.

    Raises:
        WrongState: the directory of an image cannot be written to, so that nothing proves what the destination sees; not where
            the disk may be copied, or with `force`.
    """
    markers: list[DiskMarker] = []
    risks: list[str] = []
    with ExitStack() as undo:
        undo.callback(lambda: remove_markers(paths_of(tuple(markers)), store))
        for image in written_images(definition):
            marker = _name_marker(_disk(image), Path(image.path))
            _record(marker, store)
            try:
                _put(marker, store)
                markers.append(marker)
            except OSError as error:
                if may_copy:
                    markers.append(DiskMarker(_disk(image), image.path, "", "", source_path=image.path))
                    continue
                text = (
                    f"disk {_disk(image)}: whether the destination sees the same file cannot be checked: "
                    f"{Path(image.path).parent}: {error.strerror}"
                )
                reason = NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else "DISK_NOT_CHECKABLE"
                risks.append(risk_of(text, reason, force=force, disk=_disk(image)))
        undo.pop_all()
    return tuple(markers), tuple(risks)


def leave_beside_markers(definition: Definition, store: Store) -> tuple[DiskMarker, ...]:
    """Put a marker beside each file that is written to with an image: data files, extents; their paths are those of the source.

    Raises:
        WrongState: the header of an image cannot be read.
    """
    markers: list[DiskMarker] = []
    with ExitStack() as undo:
        undo.callback(lambda: remove_markers(paths_of(tuple(markers)), store))
        for image in disk_images(definition):
            paths = () if image.is_read_only or not image.path else files_beside(definition, image)
            for path in paths:
                try:
                    markers.append(leave_marker(image.disk, Path(path), store))
                except OSError:
                    markers.append(DiskMarker(image.disk, path, "", "", source_path=path))
        undo.pop_all()
    return tuple(markers)


def leave_marker(disk: str, path: Path, store: Store) -> DiskMarker:
    """Put a marker beside an image; a block device needs none.

    Raises:
        OSError: its directory cannot be written to; nothing is left there.
    """
    marker = _name_marker(disk, path)
    _record(marker, store)
    _put(marker, store)
    return marker


def _record(marker: DiskMarker, store: Store) -> None:
    if marker.marker_path:
        store.save_marker(Path(marker.marker_path))


def _put(marker: DiskMarker, store: Store) -> None:
    try:
        _write_marker(marker)
    except OSError:
        store.remove_marker(Path(marker.marker_path))
        raise


def sight_of(marker: DiskMarker, source: HostIdentity, here: HostIdentity) -> Sight:
    """Say what this host, the destination, sees of an image."""
    path = Path(marker.image_path)
    if marker.device_number:
        is_same = source.boot_id == here.boot_id and _device_number(path) == marker.device_number
        return Sight.SAME if is_same else Sight.UNKNOWN
    if not marker.nonce:
        return Sight.UNKNOWN
    if _read_marker(marker) != marker.nonce:
        return Sight.OTHER
    # It is the same directory; is it the same file in it?
    is_same = not marker.source_path or path.name == Path(marker.source_path).name or _inode(path) == (marker.inode or None)
    return Sight.SAME if is_same else Sight.OTHER


def may_be_same(marker: DiskMarker, source: HostIdentity, here: HostIdentity) -> bool:
    """Say whether what this host has at an image's path, if anything, may be the source's own, though nothing proves it."""
    path = Path(marker.image_path)
    if not os.path.lexists(path) or sight_of(marker, source, here) is not Sight.UNKNOWN:
        return False
    if not marker.device_number:
        return True
    return source.boot_id != here.boot_id and path.is_block_device()  # one kernel tells its devices apart by their numbers


def check_marker(marker: DiskMarker, source: HostIdentity, here: HostIdentity, *, force: bool, hint: str = "") -> tuple[str, ...]:
    """Refuse an image that is not the very one of the source: the guest would go on with another disk. Return what is a risk.

    Raises:
        WrongState: the disk is not on storage that both hosts share; or whether it is cannot be told, and `force` is not given.
    """
    match sight_of(marker, source, here):
        case Sight.SAME:
            return ()
        case Sight.UNKNOWN:
            what = "block device" if marker.device_number else "file"
            text = (
                f"disk {marker.disk}: that the {what} {marker.image_path} is the same on {source.name} and {here.name} "
                f"cannot be proved{hint}"
            )
            return (risk_of(text, "DISK_NOT_PROVED", force=force, disk=marker.disk),)
        case Sight.OTHER:
            raise WrongState(
                f"disk {marker.disk}: {marker.image_path} on this host is not the file that {source.name} uses; "
                f"put the image on storage that both hosts share{hint or ', or have it copied (--disks)'}",
                reason="DISK_NOT_SHARED",
                disk=marker.disk,
                path=marker.image_path,
            )


def check_caches(
    definition: Definition, source: HostIdentity, here: HostIdentity, *, force: bool, but: Container[str] = ()
) -> tuple[str, ...]:
    """Refuse images whose cache is never flushed: the destination would read what was there before. Return what is a risk.

    Two agents of one kernel share its page cache, so nothing is lost between them; nor is of disks that are copied, `but`.

    Raises:
        WrongState: there is one, and `force` is not given.
    """
    if source.boot_id == here.boot_id:
        return ()
    return tuple(
        risk_of(
            f"disk {_disk(image)}: with cache mode unsafe the guest's last writes may not have left {source.name}",
            "CACHE_UNSAFE",
            force=force,
            disk=_disk(image),
        )
        for image in written_images(definition)
        if image.is_never_flushed and _disk(image) not in but
    )


def paths_of(markers: tuple[DiskMarker, ...]) -> tuple[str, ...]:
    """Name the files that markers are."""
    return tuple(marker.marker_path for marker in markers if marker.marker_path)


def remove_markers(paths: tuple[str, ...], store: Store) -> None:
    """Ensure that the markers are gone; what cannot be removed now is tried again when the agent is started again."""
    for path in map(Path, paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("marker not removed", path=str(path), error=error.strerror)
            continue
        try:
            store.remove_marker(path)
        except StorageFailed as error:
            _log.warning("marker not forgotten", path=str(path), error=error.text)


@contextmanager
def unless_lost(markers: tuple[DiskMarker, ...], store: Store) -> Iterator[None]:
    """Remove markers when what is to look after them is not made."""
    try:
        yield
    except BaseException:
        remove_markers(paths_of(markers), store)
        raise


def find_strays(store: Store, awaited: Container[str]) -> tuple[str, ...]:
    """Name the markers that an earlier run of the agent left, but for those that a migration will still remove.

    Raises:
        BrokenRecord: what is on record cannot be read.
    """
    return tuple(path for path in map(str, store.markers()) if path not in awaited)


def _name_marker(disk: str, path: Path) -> DiskMarker:
    if number := _device_number(path):
        return DiskMarker(disk, str(path), "", "", number, str(path))
    nonce = secrets.token_hex(16)
    beside = str(path.parent / f"{MARKER_PREFIX}{nonce[:12]}")
    return DiskMarker(disk, str(path), beside, nonce, source_path=str(path), inode=_inode(path) or 0)


def _write_marker(marker: DiskMarker) -> None:
    """Put it there, or leave nothing."""
    if not marker.marker_path:
        return
    path = Path(marker.marker_path)
    try:
        path.write_text(marker.nonce, encoding="ascii")
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _read_marker(marker: DiskMarker) -> str:
    path = Path(marker.image_path).parent / Path(marker.marker_path).name
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _device_number(path: Path) -> int:
    """Return the number of a block device; 0 for what is none."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else 0


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _disk(image: HostFile) -> str:
    return image.what.removeprefix("disk ")


def risk_of(text: str, reason: str, *, force: bool, **facts: str) -> str:
    """Return what the user has taken on himself.

    Raises:
        WrongState: he has not.
    """
    if force:
        return Risk(text, reason)
    raise WrongState(f"{text}; --force moves the guest all the same", reason=reason, **facts)
