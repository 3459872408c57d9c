"""What QEMU says of disks, their images and the jobs on them. Jobs are observed, so an unknown status is no error.

Source: qapi/block-core.json (`BlockInfo`, `ImageInfo`, `BlockJobInfo`), qapi/job.json (`JobStatus`, `JobInfo`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_list, as_mapping, find_bool, find_int, find_str, get_bool, get_int, get_str
from common.foreign_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.subscription import Event

# What only some formats have, of their `format-specific`.
_Specifics = dict[str, object]
_JSON: Final = "json:"


class JobStatus(Enum):
    """QEMU's status of a job."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    STANDBY = "standby"
    WAITING = "waiting"
    PENDING = "pending"
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    NULL = "null"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class JobReport:
    """One of `query-jobs`; numbers are of the job's own unit, bytes for jobs on disks.

    Attributes:
        error: why it failed or was cancelled; empty while it has not. Told until the job is dismissed.
    """

    id: str
    type: str
    status: JobStatus
    current: int
    total: int
    error: str


@dataclass(frozen=True, slots=True)
class BlockJobReport:
    """One of `query-block-jobs`.

    Attributes:
        len_bytes: grows with what the guest writes under a mirror.
        speed_bytes_per_second: 0 is without a bound.
        io_status: `ok`, or `failed` or `nospace` when an error stopped the job.
    """

    id: str
    type: str
    status: JobStatus
    len_bytes: int
    offset_bytes: int
    speed_bytes_per_second: int
    is_paused: bool
    is_ready: bool
    io_status: str


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap of a node, as backup programs use them; `is_persistent` tells whether it is stored in the image."""

    name: str
    is_persistent: bool


@dataclass(frozen=True, slots=True)
class ImageReport:
    """One image, and those that it stands on.

    Attributes:
        filename: as QEMU names it; `json:{...}` where it has no shorter name.
        actual_size_bytes: what it takes on its storage; None where that is not known.
        cluster_size_bytes: None of a format without clusters.
        backing_filename: as it stands in the image; empty without one.
        snapshots: names of the snapshots inside of the image.
        specifics: of the format, such as `compat` and `data-file` of qcow2.
        backing: None at the end of the chain.
    """

    filename: str
    format: str
    virtual_size_bytes: int
    actual_size_bytes: int | None
    cluster_size_bytes: int | None
    backing_filename: str
    backing_format: str
    snapshots: tuple[str, ...]
    specifics: _Specifics
    backing: ImageReport | None

    def chain(self) -> tuple[ImageReport, ...]:
        """List the images from this one down."""
        return (self, *(() if self.backing is None else self.backing.chain()))


@dataclass(frozen=True, slots=True)
class DriveReport:
    """One of `query-block`: a drive of the guest and the medium in it.

    Attributes:
        name: QEMU's own name of the backend; empty where the drive was given as a node.
        device: QOM path or id of the device in front; empty without one.
        node: the top node; empty without a medium.
        image: None without a medium.
        bitmaps: of the top node.
    """

    name: str
    device: str
    node: str
    is_read_only: bool
    image: ImageReport | None
    bitmaps: tuple[Bitmap, ...] = ()

    def is_of(self, device: str) -> bool:
        """Say whether the device with this id is in front."""
        return bool(device) and device in self.device.split("/")


def decode_job_status(text: str) -> JobStatus:
    """Find the status that QEMU means; UNKNOWN for one that is not in our list."""
    try:
        return JobStatus(text)
    except ValueError:
        return JobStatus.UNKNOWN


def job_change_of(event: Event) -> tuple[str, JobStatus] | None:
    """Find which job changed to what; None of another event than JOB_STATUS_CHANGE."""
    if event.name != "JOB_STATUS_CHANGE":
        return None
    return str(event.data.get("id")), decode_job_status(str(event.data.get("status")))


def decode_jobs(reply: object) -> tuple[JobReport, ...]:
    """Decode the answer to `query-jobs`."""
    return tuple(_job(as_mapping(job, "job")) for job in as_list(reply, "query-jobs"))


def decode_block_jobs(reply: object) -> tuple[BlockJobReport, ...]:
    """Decode the answer to `query-block-jobs`."""
    return tuple(_block_job(as_mapping(job, "block job")) for job in as_list(reply, "query-block-jobs"))


def decode_drives(reply: object) -> tuple[DriveReport, ...]:
    """Decode the answer to `query-block`."""
    return tuple(_drive(as_mapping(drive, "drive")) for drive in as_list(reply, "query-block"))


def decode_nodes(reply: object) -> dict[str, ImageReport]:
    """Decode the answer to `query-named-block-nodes`: the image of each node."""
    nodes = [as_mapping(node, "node") for node in as_list(reply, "query-named-block-nodes")]
    return {get_str(node, "node-name"): decode_image(node["image"]) for node in nodes if "image" in node}


def decode_node_bitmaps(reply: object) -> dict[str, tuple[Bitmap, ...]]:
    """Decode the answer to `query-named-block-nodes`: the dirty bitmaps of each node that has some."""
    nodes = [as_mapping(node, "node") for node in as_list(reply, "query-named-block-nodes")]
    return {get_str(node, "node-name"): found for node in nodes if (found := _bitmaps(node))}


def path_of(filename: str) -> str:
    """Find the path in QEMU's name of an image, which is JSON where options matter. Source: block.c, bdrv_refresh_filename()."""
    if not filename.startswith(_JSON):
        return filename
    try:
        options = parse_json(filename.removeprefix(_JSON))
    except ValueError:
        return filename
    while isinstance(options, dict):
        if isinstance(options.get("filename"), str):
            return str(options["filename"])
        options = options.get("file") or options.get("image")
    return filename


def _job(job: Mapping[str, object]) -> JobReport:
    return JobReport(
        id=get_str(job, "id"),
        type=get_str(job, "type"),
        status=decode_job_status(get_str(job, "status")),
        current=get_int(job, "current-progress"),
        total=get_int(job, "total-progress"),
        error=find_str(job, "error") or "",
    )


def _block_job(job: Mapping[str, object]) -> BlockJobReport:
    return BlockJobReport(
        id=get_str(job, "device"),
        type=get_str(job, "type"),
        status=decode_job_status(get_str(job, "status")),
        len_bytes=get_int(job, "len"),
        offset_bytes=get_int(job, "offset"),
        speed_bytes_per_second=get_int(job, "speed"),
        is_paused=get_bool(job, "paused"),
        is_ready=get_bool(job, "ready"),
        io_status=get_str(job, "io-status"),
    )


def _drive(drive: Mapping[str, object]) -> DriveReport:
    inserted: Mapping[str, object] = as_mapping(drive["inserted"], "inserted") if "inserted" in drive else {}
    return DriveReport(
        name=get_str(drive, "device"),
        device=find_str(drive, "qdev") or "",
        node=find_str(inserted, "node-name") or "",
        is_read_only=find_bool(inserted, "ro") or False,
        image=decode_image(inserted["image"]) if "image" in inserted else None,
        bitmaps=_bitmaps(inserted),
    )


def _snapshot(value: object) -> str:
    """Name a snapshot. Source: qapi/block-core.json, SnapshotInfo."""
    one = as_mapping(value, "snapshot")
    return find_str(one, "name") or f"number {find_str(one, 'id') or '?'}"


def _bitmaps(node: Mapping[str, object]) -> tuple[Bitmap, ...]:
    """Decode the bitmaps that have a name; those without are of QEMU's own jobs. Source: qapi/block-core.json, BlockDirtyInfo."""
    found = [as_mapping(one, "dirty bitmap") for one in as_list(node.get("dirty-bitmaps", []), "dirty-bitmaps")]
    return tuple(Bitmap(name, find_bool(one, "persistent") or False) for one in found if (name := find_str(one, "name")))


_DEEPEST: Final = 400


def decode_image(value: object, *, depth: int = 0) -> ImageReport:
    """Decode an ImageInfo with its chain."""
    image = as_mapping(value, "image")
    below = image.get("backing-image")
    specific = as_mapping(image.get("format-specific", {}), "format-specific")
    return ImageReport(
        filename=get_str(image, "filename"),
        format=get_str(image, "format"),
        virtual_size_bytes=get_int(image, "virtual-size"),
        actual_size_bytes=find_int(image, "actual-size"),
        cluster_size_bytes=find_int(image, "cluster-size"),
        backing_filename=find_str(image, "backing-filename") or "",
        backing_format=find_str(image, "backing-filename-format") or "",
        snapshots=tuple(_snapshot(one) for one in as_list(image.get("snapshots", []), "snapshots")),
        specifics=dict(as_mapping(specific.get("data", {}), "format-specific data")),
        backing=None if below is None or depth > _DEEPEST else decode_image(below, depth=depth + 1),
    )
