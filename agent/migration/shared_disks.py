"""Whether the destination's images are the very ones of the source: proved by markers, or taken on the user's word.

A marker is on record before it is there, so that an agent that is started again removes what nobody else will.
"""

from __future__ import annotations

import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.migration.order import DiskMarker, HostIdentity
from agent.vm.definition import Definition
from agent.vm.host_files import HostFile, written_images
from common.errors import WrongState
from common.findings import Risk

if TYPE_CHECKING:
    from collections.abc import Container

    from agent.store import Store

MARKER_PREFIX = ".ferry-"
_log = structlog.get_logger()


def write_markers(definition: Definition, store: Store, *, force: bool) -> tuple[tuple[DiskMarker, ...], tuple[str, ...]]:
    """Put a marker beside each image that the guest writes to; return them, and what is a risk.

    Raises:
        WrongState: the directory of an image cannot be written to, and `force` is not given.
    """
    markers: list[DiskMarker] = []
    risks: list[str] = []
    for image in written_images(definition):
        marker = _name_marker(image)
        if marker.marker_path:
            store.save_marker(Path(marker.marker_path))
        try:
            _write_marker(marker)
            markers.append(marker)
        except OSError as error:
            store.remove_marker(Path(marker.marker_path))
            text = (
                f"disk {_disk(image)}: whether the destination sees the same file cannot be checked: "
                f"{Path(image.path).parent}: {error.strerror}"
            )
            try:
                risks.append(_risk(text, "DISK_NOT_CHECKABLE", force=force, disk=_disk(image)))
            except WrongState:
                remove_markers(paths_of(tuple(markers)), store)
                raise
    return tuple(markers), tuple(risks)


def check_markers(markers: tuple[DiskMarker, ...], source: HostIdentity, here: HostIdentity, *, force: bool) -> tuple[str, ...]:
    """Refuse images that are not the very ones of the source: the guest would go on with another disk. Return what is a risk.

    Raises:
        WrongState: a disk is not on storage that both hosts share; or whether it is cannot be told, and `force` is not given.
    """
    risks = []
    for marker in markers:
        if marker.device_number:
            if source.boot_id != here.boot_id or _device_number(Path(marker.image_path)) != marker.device_number:
                text = (
                    f"disk {marker.disk}: that the block device {marker.image_path} is the same on {source.name} and {here.name} "
                    "cannot be proved"
                )
                risks.append(_risk(text, "DISK_NOT_PROVED", force=force, disk=marker.disk))
        elif _read_marker(marker) != marker.nonce:
            raise WrongState(
                f"disk {marker.disk}: {marker.image_path} on this host is not the file that {source.name} uses; "
                "put the image on storage that both hosts share (copying disks comes later)",
                reason="DISK_NOT_SHARED",
                disk=marker.disk,
                path=marker.image_path,
            )
    return tuple(risks)


def check_caches(definition: Definition, source: HostIdentity, here: HostIdentity, *, force: bool) -> tuple[str, ...]:
    """Refuse images whose cache is never flushed: the destination would read what was there before. Return what is a risk.

    Two agents of one kernel share its page cache, so nothing is lost between them.

    Raises:
        WrongState: there is one, and `force` is not given.
    """
    if source.boot_id == here.boot_id:
        return ()
    return tuple(
        _risk(
            f"disk {_disk(image)}: with cache mode unsafe the guest's last writes may not have left {source.name}",
            "CACHE_UNSAFE",
            force=force,
            disk=_disk(image),
        )
        for image in written_images(definition)
        if image.is_never_flushed
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
        else:
            store.remove_marker(path)


def find_strays(store: Store, awaited: Container[str]) -> tuple[str, ...]:
    """Name the markers that an earlier run of the agent left, but for those that a migration will still remove.

    Raises:
        BrokenRecord: what is on record cannot be read.
    """
    return tuple(path for path in map(str, store.markers()) if path not in awaited)


def _name_marker(image: HostFile) -> DiskMarker:
    path = Path(image.path)
    if number := _device_number(path):
        return DiskMarker(_disk(image), image.path, "", "", number)
    nonce = secrets.token_hex(16)
    return DiskMarker(_disk(image), image.path, str(path.parent / f"{MARKER_PREFIX}{nonce[:12]}"), nonce)


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


def _disk(image: HostFile) -> str:
    return image.what.removeprefix("disk ")


def _risk(text: str, reason: str, *, force: bool, disk: str) -> str:
    """Return what the user has taken on himself, or refuse it."""
    if force:
        return Risk(text, reason)
    raise WrongState(f"{text}; --force moves the guest all the same", reason=reason, disk=disk)
