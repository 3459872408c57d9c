"""What the source tells of its guest's disks, so that a copy can be made like them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.migration.disk_wishes import Mode, Which
from agent.migration.order import DiskFacts, DiskMarker
from agent.migration.shared_disks import leave_marker
from agent.vm.data_files import find_data_file
from agent.vm.disk_images import FILTERS, DiskImage, disk_images
from common.errors import WrongState

if TYPE_CHECKING:
    from agent.migration.disk_wishes import DiskWishes
    from agent.qemu.block_commands import BlockCommands
    from agent.qemu.block_status import DriveReport, ImageReport
    from agent.store import Store
    from agent.vm.definition import Definition

COPIED_FORMATS: Final = ("raw", "qcow2")
# Of qcow2: the name in QEMU's report and that of qemu-img. Source: qapi/block-core.json, ImageInfoSpecificQCow2.
_QCOW2_OPTIONS: Final = {
    "compat": "compat",
    "lazy-refcounts": "lazy_refcounts",
    "refcount-bits": "refcount_bits",
    "extended-l2": "extended_l2",
    "compression-type": "compression_type",
    "data-file-raw": "data_file_raw",
}
CREATE_OPTIONS: Final = frozenset({*_QCOW2_OPTIONS.values(), "cluster_size"})
_OLD_QCOW2: Final = "0.10"


async def describe_disks(
    blocks: BlockCommands, running: Definition, wanted: Definition, wishes: DiskWishes, store: Store
) -> tuple[DiskFacts, ...]:
    """Describe each disk that has an image; leaves markers beside images that copies stand on.

    Args:
        blocks: of the guest's QEMU.
        running: what the guest runs as.
        wanted: the same for the destination, with the paths that images have there.
        wishes: what is wished of the disks.
        store: where markers are on record.
    """
    if wishes.which is Which.NONE:
        return ()
    paths = {image.disk: image.path for image in disk_images(wanted)}
    drives = await blocks.query_drives()
    images = disk_images(running)
    copyable = [image for image in images if not obstacle_of(image)]
    reports = {image.disk: await _find_report(blocks, find_drive(drives, image), image) for image in copyable}
    # Nothing is awaited from here on: markers are left by all or by none.
    return tuple(
        _describe(
            image, reports.get(image.disk), paths.get(image.disk, ""), wishes.mode, store, find_data_file(running, image.disk)
        )
        for image in images
    )


def _describe(  # noqa: PLR0913, PLR0917 -- each of another origin
    image: DiskImage, report: ImageReport | None, path: str, mode: Mode, store: Store, given_data: str | None
) -> DiskFacts:
    if report is None:
        return DiskFacts(image.disk, path, obstacle=obstacle_of(image) or "QEMU says nothing of its image")
    if given_data == "":
        return DiskFacts(image.disk, path, obstacle="its data file is behind more nodes than that of a file")
    return _facts(image, report, path, _Backing.of(image, report, mode, store), given_data)


async def refuse_jobs(blocks: BlockCommands, vm_name: str) -> None:
    """Refuse a guest with a job on one of its disks: the two would end each other.

    Raises:
        WrongState: there is one.
    """
    if jobs := await blocks.query_jobs():
        raise WrongState(
            f"VM {vm_name} has a job on its disks ({jobs[0].type} {jobs[0].id}, {jobs[0].status.value}): let it end first "
            "(ferry block ls)",
            reason="BLOCK_JOB_ACTIVE",
            vm=vm_name,
            job=jobs[0].id,
        )


def obstacle_of(image: DiskImage) -> str:
    """Say why a disk cannot be copied whatever is in it; empty when it can."""
    if not image.path:
        return "its image is no file of the host, both hosts have to reach it where it is"
    if image.is_read_only:
        return "it is read-only, and the same image has to be there"
    if image.is_shareable:
        return "it is shareable, and its other users would go on with the old one"
    return ""


def find_drive(drives: Iterable[DriveReport], image: DiskImage) -> DriveReport | None:
    """Find what QEMU says of a disk; it knows the device in front, the node, or the name of a -drive."""
    for drive in drives:
        if drive.is_of(image.device) or (image.node and drive.node == image.node) or (not image.node and drive.name == image.disk):
            return drive
    return None


async def _find_report(blocks: BlockCommands, drive: DriveReport | None, image: DiskImage) -> ImageReport | None:
    if drive is None or drive.image is None or drive.image.format not in FILTERS:
        return None if drive is None else drive.image
    return (await blocks.query_images()).get(image.format_node)


@dataclass(frozen=True, slots=True)
class _Backing:
    """What an image stands on, as a copy of the top alone needs it."""

    path: str
    format: str
    marker: DiskMarker | None
    obstacle: str

    @classmethod
    def of(cls, image: DiskImage, report: ImageReport, mode: Mode, store: Store) -> _Backing:
        below = report.backing
        if mode is not Mode.TOP or below is None:
            return cls("", "", None, "")
        if not below.filename.startswith("/"):
            return cls(
                "", "", None, f"it stands on {below.filename[:200]}, which is no file of the host; --disks-mode full copies all"
            )
        try:
            marker = leave_marker(image.disk, Path(below.filename), store)
        except OSError as error:
            return cls("", "", None, f"nothing can prove that the other host sees {below.filename}: {error.strerror}")
        return cls(below.filename, below.format, marker, "")


def _facts(image: DiskImage, report: ImageReport, path: str, backing: _Backing, given_data: str | None) -> DiskFacts:
    # QEMU writes zeroes to a raw data file, and makes no holes there.
    is_full = report.specifics.get("data-file-raw") is True
    data_path = given_data or str(report.specifics.get("data-file", ""))
    return DiskFacts(
        disk=image.disk,
        path=path,
        format=report.format,
        virtual_size_bytes=report.virtual_size_bytes,
        allocated_bytes=report.virtual_size_bytes if is_full else _allocated(report.chain(), report.virtual_size_bytes),
        top_bytes=report.virtual_size_bytes if is_full else _allocated((report,), report.virtual_size_bytes),
        create_options=_create_options(report),
        data_path=_place_data(data_path, image.path, path),
        backing_path=backing.path,
        backing_format=backing.format,
        backing_marker=backing.marker,
        snapshots=tuple(name for one in (report.chain() if not backing.path else (report,)) for name in one.snapshots),
        obstacle=backing.obstacle or _obstacle_in(report),
    )


def _obstacle_in(report: ImageReport) -> str:
    if report.format not in COPIED_FORMATS:
        return f"its format is {report.format}; {' and '.join(COPIED_FORMATS)} are copied"
    if "encrypt" in report.specifics:
        return "its image is encrypted with a key that Ferry does not have"
    return ""


def _allocated(images: Iterable[ImageReport], virtual_size_bytes: int) -> int:
    """Add up what images take; of a block device, which takes what it is, QEMU says 0, as of a file that is one hole."""
    return min(sum(image.actual_size_bytes or _device_bytes(image) for image in images), virtual_size_bytes)


def _device_bytes(image: ImageReport) -> int:
    return 0 if image.actual_size_bytes == 0 and Path(image.filename).is_file() else image.virtual_size_bytes


def _create_options(report: ImageReport) -> tuple[str, ...]:
    if report.format != "qcow2":
        return ()
    is_old = report.specifics.get("compat") == _OLD_QCOW2
    known = {"compat": "compat"} if is_old else _QCOW2_OPTIONS
    options = [f"{theirs}={_word(report.specifics[ours])}" for ours, theirs in known.items() if ours in report.specifics]
    if report.cluster_size_bytes is not None:
        options.append(f"cluster_size={report.cluster_size_bytes}")
    return tuple(options)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _place_data(data_path: str, source_path: str, path: str) -> str:
    """Say where the external data file lies on the destination: where it lies here, or beside an image that lies elsewhere."""
    if not data_path:
        return ""
    return str(Path(source_path).parent / data_path) if path == source_path else f"{path}.data"


def totals(facts: Mapping[str, DiskFacts], disks: Iterable[str], mode: Mode) -> int:
    """Add up what the copies of disks take on storage, in bytes."""
    return sum(facts[disk].top_bytes if mode is Mode.TOP else facts[disk].allocated_bytes for disk in disks)
