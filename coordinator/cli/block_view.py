"""Disks and their jobs as tables for people. Pure: messages in, renderables out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.cli.plain import enum_name
from coordinator.cli.screen import columns, pairs
from coordinator.cli.units import format_bytes, format_rate
from ferry.agent.v1 import block_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

_PERCENT = 100


def disks_table(disks: Iterable[tuple[str, pb.DiskChain]]) -> Table:
    """List disks, an image a line."""
    rows = [row for host, disk in disks for row in _rows(host, disk)]
    return columns(("VM", "HOST", "DISK", "IMAGE", "FORMAT", "SIZE", "ON DISK", "JOB"), rows, right=frozenset({"SIZE", "ON DISK"}))


def job_details(host: str, job: pb.BlockJob) -> Table:
    """Show one job."""
    bound = job.bandwidth_bytes_per_second
    rows = [
        ("vm", job.vm_name),
        ("host", host),
        ("disk", f"{job.disk}, {job.path}"),
        ("job", f"{kind_word(job)} {job.id}"),
        ("state", state_word(job)),
        ("file", job.file or "-"),
        ("done", f"{format_bytes(job.processed_bytes)} of {format_bytes(job.total_bytes)}"),
        ("bandwidth", format_rate(bound) if bound else "no bound"),
    ]
    rows += [("warning", warning) for warning in job.warnings]
    if job.error:
        rows.append(("error", f"{job.error} [{job.reason}]"))
    return pairs(rows)


def kind_word(job: pb.BlockJob) -> str:
    """Name what a job does."""
    return enum_name(pb.BlockJob.Kind.DESCRIPTOR, job.kind).lower().replace("_", "-")


def state_word(job: pb.BlockJob) -> str:
    """Name where a job stands."""
    return enum_name(pb.BlockJob.State.DESCRIPTOR, job.state).lower()


def progress_words(job: pb.BlockJob) -> str:
    """Say how far a job is."""
    if not job.total_bytes:
        return ""
    share = _PERCENT * job.processed_bytes // job.total_bytes
    return f"{share} %, {format_bytes(job.processed_bytes)} of {format_bytes(job.total_bytes)}"


def _rows(host: str, disk: pb.DiskChain) -> Iterator[tuple[str, ...]]:
    job = f"{kind_word(disk.job)} {state_word(disk.job)} {progress_words(disk.job)}".strip() if disk.HasField("job") else ""
    moving = "copied by a migration" if disk.migration_jobs else ""
    job = ", ".join(filter(None, (job, moving, *(f"{name} (not Ferry's)" for name in disk.foreign_jobs)))) or "-"
    if not disk.images:
        yield disk.vm_name, host, disk.disk, "(no medium)", "", "", "", job
    for index, image in enumerate(disk.images):
        size, taken = format_bytes(image.virtual_size_bytes), format_bytes(image.actual_size_bytes)
        front = (disk.vm_name, host, disk.disk) if index == 0 else ("", "", "")
        path = f"{'' if index == 0 else 'on '}{image.path}{' (read-only)' if disk.is_read_only and index == 0 else ''}"
        yield *front, path, image.format, size, taken, job if index == 0 else ""
