"""What of a guest's disks does not go along with it: dirty bitmaps of backup programs, and snapshots inside of images. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.migration.disk_facts import find_drive
from agent.vm.disk_images import disk_images, node_options
from common.findings import Risk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.migration.order import DiskFacts
    from agent.qemu.block_status import Bitmap, DriveReport
    from agent.vm.definition import Definition

_NEXT_BACKUP = "so that the next backup has to be a full one"


def bitmaps_of_disks(
    definition: Definition, drives: Iterable[DriveReport], bitmaps: Mapping[str, tuple[Bitmap, ...]]
) -> dict[str, tuple[Bitmap, ...]]:
    """Find the bitmaps of each disk among those of QEMU's nodes."""
    drives, found = tuple(drives), {}
    for image in disk_images(definition):
        drive = find_drive(drives, image)
        nodes = {option.get("node-name") for option in node_options(definition, image.disk)} | ({drive.node} if drive else set())
        found[image.disk] = tuple(bitmap for node in sorted(nodes) for bitmap in bitmaps.get(node, ()))
    return found


def transient_bitmaps(disk: str, bitmaps: Iterable[Bitmap]) -> tuple[str, ...]:
    """Say which bitmaps of a disk no migration takes along: those that are in QEMU's memory alone."""
    names = [bitmap.name for bitmap in bitmaps if not bitmap.is_persistent]
    if not names:
        return ()
    text = f"disk {disk}: dirty bitmap {', '.join(names)} is not persistent and does not go along, {_NEXT_BACKUP}"
    return (Risk(text, "BITMAPS_LOST"),)


def left_with_the_original(facts: DiskFacts) -> tuple[str, ...]:
    """Say what a copy of a disk has not."""
    found = []
    if facts.bitmaps:
        text = f"disk {facts.disk}: dirty bitmap {', '.join(facts.bitmaps)} stays with the old image, {_NEXT_BACKUP}"
        found.append(Risk(text, "BITMAPS_STAY"))
    if facts.snapshots:
        names = ", ".join(facts.snapshots)
        found.append(Risk(f"disk {facts.disk}: snapshot {names} inside of its image stays with the old one", "SNAPSHOTS_STAY"))
    return tuple(found)
