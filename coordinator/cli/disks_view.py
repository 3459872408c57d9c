"""Disks of a move as they are shown: which are copied, how far they are, and what was wished of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.cli.units import format_bytes, format_rate
from ferry.common.v1 import disks_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WHICH = {pb.DiskWishes.WHICH_ALL: "all disks copied", pb.DiskWishes.WHICH_NONE: "no disk copied"}


def copies_told(disks: Iterable[pb.DiskProgress]) -> Iterator[str]:
    """Say which disks are copied, a line each."""
    for disk in disks:
        yield f"disk {disk.disk} is copied to {disk.path}"


def disk_numbers(disks: Iterable[pb.DiskProgress]) -> Iterator[str]:
    """Give the numbers of disks that are copied, while they are not all equal on both sides."""
    each = list(disks)
    total = sum(disk.total_bytes for disk in each)
    if not total or all(disk.is_ready for disk in each):
        return
    copied = sum(disk.copied_bytes for disk in each)
    yield "disks"
    yield f"{100 * copied / total:.0f} %"
    yield f"{format_bytes(total - copied)} of {format_bytes(total)} left"
    for disk in each:
        yield f"{disk.disk} {'copied' if disk.is_ready else f'{100 * disk.copied_bytes / max(1, disk.total_bytes):.0f} %'}"


def disk_rows(disks: Iterable[pb.DiskProgress]) -> Iterator[tuple[str, str]]:
    """Tell what was copied."""
    for disk in disks:
        yield f"disk {disk.disk}", f"{format_bytes(disk.copied_bytes)} of {format_bytes(disk.virtual_size_bytes)} to {disk.path}"


def disks_words(wishes: pb.DiskWishes) -> list[str]:
    """Name what was wished of the disks."""
    words = [f"disks {', '.join(wishes.names)} copied" if wishes.names else _WHICH.get(wishes.which, "")]
    words.append("top images only" if wishes.mode == pb.DiskWishes.MODE_TOP else "")
    if wishes.bandwidth_bytes_per_second:
        words.append(f"disks at most {format_rate(wishes.bandwidth_bytes_per_second)}")
    words.append("into images that exist" if wishes.reuse else "")
    return [word for word in words if word]
