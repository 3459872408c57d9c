"""What `ferry migrate` may wish of the disks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from coordinator.cli.options import Misused, Switch, bandwidth_of, one_value
from ferry.common.v1 import disks_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

DISKS = Group("Disks", sort_key=45)
MIN_BANDWIDTH_BYTES_PER_SECOND = 1 << 16
_WORDS = {"all": pb.DiskWishes.WHICH_ALL, "none": pb.DiskWishes.WHICH_NONE}

DiskBandwidth = Annotated[
    int | None,
    one_value(
        "RATE",
        bandwidth_of,
        "Bound of the copying of all disks together, as 100MiB/s; 0 for none.",
        name="--disk-bandwidth",
        show_default=False,
    ),
]


class DisksMode(Enum):
    """How much of a disk is copied."""

    FULL = "full"
    TOP = "top"


_MODES = {DisksMode.FULL: pb.DiskWishes.MODE_FULL, DisksMode.TOP: pb.DiskWishes.MODE_TOP}


@Parameter(name="*", group=DISKS)
@dataclass(frozen=True, slots=True)
class DisksWishes:
    """Which disks are copied, and how."""

    disks: Annotated[
        str,
        Parameter(
            metavar="all|none|DISK,DISK",
            show_default=False,
            help="Disks to copy; without it those that the destination does not see as the very same file.",
        ),
    ] = ""
    disks_mode: Annotated[
        DisksMode | None,
        Parameter(
            show_default=False, help="Copy all that the guest sees (full), or the top image over a shared backing file (top)."
        ),
    ] = None
    disk_bandwidth: DiskBandwidth = None
    dest_path: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="DISK=FILE",
            negative="",
            show_default=False,
            help="Where the image of a disk lies on the destination; may be given for each disk.",
        ),
    ] = ()
    reuse: Annotated[Switch, Parameter(help="Copy into images that exist on the destination; what is in them is lost.")] = False

    def message(self) -> pb.DiskWishes:
        """Turn the wishes into a message.

        Raises:
            Misused: a value is no value, or they contradict each other.
        """
        names = [name.strip() for name in self.disks.split(",")] if self.disks and self.disks not in _WORDS else []
        if "" in names:
            raise Misused(f"--disks {self.disks}: all, none, or disks as vda,vdb are wanted")
        if self.disks == "none" and (self.reuse or self.disk_bandwidth or self.disks_mode is not None):
            raise Misused("--disks none copies nothing, so how disks are copied has no sense with it")
        check_disk_bandwidth(self.disk_bandwidth)
        return pb.DiskWishes(
            which=pb.DiskWishes.WHICH_NAMED if names else _WORDS.get(self.disks, pb.DiskWishes.WHICH_UNSPECIFIED),
            names=names,
            mode=pb.DiskWishes.MODE_UNSPECIFIED if self.disks_mode is None else _MODES[self.disks_mode],
            bandwidth_bytes_per_second=self.disk_bandwidth or 0,
            destination_paths=dict(self._places()),
            reuse=self.reuse,
        )

    def _places(self) -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        for given in self.dest_path:
            disk, is_given, path = given.partition("=")
            if not is_given or not disk or not path.startswith("/"):
                raise Misused(f"--dest-path {given}: DISK=FILE with an absolute path is wanted, as vda=/srv/web.qcow2")
            if disk in seen:
                raise Misused(f"--dest-path: disk {disk} is given twice")
            seen.add(disk)
            yield disk, path


def check_disk_bandwidth(bytes_per_second: int | None) -> None:
    """Refuse a bound under which nothing would ever end.

    Raises:
        Misused: it is so low.
    """
    if bytes_per_second and bytes_per_second < MIN_BANDWIDTH_BYTES_PER_SECOND:
        raise Misused("--disk-bandwidth: at least 64KiB/s is wanted, or 0 for no bound")


NO_DISKS = DisksWishes()
