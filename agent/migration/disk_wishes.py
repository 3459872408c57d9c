"""What is wished of a VM's disks in a migration. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Final

from common.errors import InvalidRequest

MIN_BANDWIDTH_BYTES_PER_SECOND: Final = 1 << 16


class Which(Enum):
    """Which disks are copied; NOT_SHARED: those that the destination does not see as the very same file."""

    NOT_SHARED = "not-shared"
    ALL = "all"
    NONE = "none"
    NAMED = "named"


class Mode(Enum):
    """How much of a disk is copied: all that the guest sees, or the top image."""

    FULL = "full"
    TOP = "top"


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Where the image of a disk lies on the destination."""

    disk: str
    path: str


@dataclass(frozen=True, slots=True)
class DiskWishes:
    """What the user wishes of the disks.

    Attributes:
        names: with NAMED, by target as `vda`, or by the id of an adopted VM's drive.
        bandwidth_bytes_per_second: of all copying together; 0 is without a bound.
        places: disks that lie elsewhere on the destination.
        reuse: copy into images that are there already.
    """

    which: Which = Which.NOT_SHARED
    names: tuple[str, ...] = ()
    mode: Mode = Mode.FULL
    bandwidth_bytes_per_second: int = 0
    places: tuple[DiskPlace, ...] = ()
    reuse: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range, and wishes that exclude each other."""
        if (self.which is Which.NAMED) is not bool(self.names):
            raise InvalidRequest("disks: names are wanted with `named` and with nothing else", reason="OPTIONS_CONFLICT")
        if len(set(self.names)) < len(self.names):
            raise InvalidRequest(f"disks {','.join(self.names)}: one is named twice", reason="DISK_NAMED_TWICE")
        check_disk_bandwidth(self.bandwidth_bytes_per_second)
        if self.which is Which.NONE and (self.reuse or self.bandwidth_bytes_per_second or self.mode is Mode.TOP):
            raise InvalidRequest("disks none: how disks are copied has no sense then", reason="OPTIONS_CONFLICT")
        for place in self.places:
            path = PurePosixPath(place.path)
            if not path.is_absolute() or ".." in path.parts or not path.name or "\0" in place.path:
                raise InvalidRequest(
                    f"dest-path {place.disk}={place.path[:200]}: an absolute path without .. is wanted", reason="PATH_INVALID"
                )

    @property
    def copies_by_wish(self) -> bool:
        """Whether something was said of copying, not only of where images lie."""
        return self.which in (Which.ALL, Which.NAMED) or self.mode is Mode.TOP or self.reuse or self.bandwidth_bytes_per_second > 0

    @property
    def place_of(self) -> dict[str, str]:
        """The paths that were wished, by disk."""
        return {place.disk: place.path for place in self.places}


def check_disk_bandwidth(bytes_per_second: int) -> None:
    """Refuse a bound under which nothing would ever end.

    Raises:
        InvalidRequest: it is negative, or so low.
    """
    if bytes_per_second and bytes_per_second < MIN_BANDWIDTH_BYTES_PER_SECOND:
        raise InvalidRequest(
            f"disk-bandwidth: {bytes_per_second} bytes per second; 0 (no bound) or at least {MIN_BANDWIDTH_BYTES_PER_SECOND} "
            "is wanted",
            reason="BANDWIDTH_OUT_OF_RANGE",
        )
