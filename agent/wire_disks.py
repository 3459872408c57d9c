"""Disks of a migration, protobuf to the agent's own types and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.migration.disk_wishes import DiskPlace, DiskWishes, Mode, Which
from agent.migration.order import DiskCopy, DiskEndpoint, DiskFacts, DiskMarker, FileProof
from agent.vm.fingerprint import Fingerprint
from common.errors import InvalidRequest
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.common.v1 import disks_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

_WHICH: Final = {
    pb.DiskWishes.WHICH_UNSPECIFIED: Which.NOT_SHARED,
    pb.DiskWishes.WHICH_ALL: Which.ALL,
    pb.DiskWishes.WHICH_NONE: Which.NONE,
    pb.DiskWishes.WHICH_NAMED: Which.NAMED,
}
_MODES: Final = {
    pb.DiskWishes.MODE_UNSPECIFIED: Mode.FULL,
    pb.DiskWishes.MODE_FULL: Mode.FULL,
    pb.DiskWishes.MODE_TOP: Mode.TOP,
}
_WHICH_NUMBERS: Final = {value: number for number, value in _WHICH.items()}
_MODE_NUMBERS: Final = {value: number for number, value in _MODES.items()}


def disk_wishes(message: pb.DiskWishes) -> DiskWishes:
    """Decode what is wished of the disks.

    Raises:
        InvalidRequest: a value is unknown or out of range, or two exclude each other.
    """
    if message.which not in _WHICH or message.mode not in _MODES:
        raise InvalidRequest(
            f"disks: which {message.which} or mode {message.mode} is unknown to this agent", reason="DISKS_UNKNOWN"
        )
    places = tuple(DiskPlace(disk, path) for disk, path in sorted(message.destination_paths.items()))
    return DiskWishes(
        which=_WHICH[message.which],
        names=tuple(message.names),
        mode=_MODES[message.mode],
        bandwidth_bytes_per_second=message.bandwidth_bytes_per_second,
        places=places,
        reuse=message.reuse,
    )


def disk_wishes_message(value: DiskWishes) -> pb.DiskWishes:
    """Encode what is wished of the disks."""
    return pb.DiskWishes(
        which=_WHICH_NUMBERS[value.which],
        names=value.names,
        mode=_MODE_NUMBERS[value.mode],
        bandwidth_bytes_per_second=value.bandwidth_bytes_per_second,
        destination_paths=value.place_of,
        reuse=value.reuse,
    )


def marker(message: agent_pb.DiskMarker) -> DiskMarker:
    """Decode what proves that two hosts see one file."""
    return DiskMarker(
        disk=message.disk,
        image_path=message.image_path,
        marker_path=message.marker_path,
        nonce=message.nonce,
        device_number=message.device_number,
        source_path=message.source_path,
        inode=message.inode,
    )


def marker_message(value: DiskMarker) -> agent_pb.DiskMarker:
    """Encode what proves that two hosts see one file."""
    return agent_pb.DiskMarker(
        disk=value.disk,
        image_path=value.image_path,
        marker_path=value.marker_path,
        nonce=value.nonce,
        device_number=value.device_number,
        source_path=value.source_path,
        inode=value.inode,
    )


def file_proof(message: agent_pb.FileProof) -> FileProof:
    """Decode what tells a file from another one.

    Raises:
        InvalidRequest: the places in it are out of range.
    """
    fingerprint = Fingerprint(message.size_bytes, tuple(message.offsets), message.digest) if message.digest else None
    return FileProof(message.what, message.index, message.path, fingerprint, message.obstacle)


def file_proof_message(value: FileProof) -> agent_pb.FileProof:
    """Encode what tells a file from another one."""
    found = value.fingerprint
    message = agent_pb.FileProof(what=value.what, index=value.index, path=value.path, obstacle=value.obstacle)
    if found is not None:
        message.size_bytes, message.digest = found.size_bytes, found.digest
        message.offsets.extend(found.offsets)
    return message


def disk_facts(message: agent_pb.DiskFacts) -> DiskFacts:
    """Decode what the source tells of a disk."""
    return DiskFacts(
        disk=message.disk,
        path=message.path,
        format=message.format,
        virtual_size_bytes=message.virtual_size_bytes,
        allocated_bytes=message.allocated_bytes,
        top_bytes=message.top_bytes,
        create_options=tuple(message.create_options),
        data_path=message.data_path,
        backing_path=message.backing_path,
        backing_format=message.backing_format,
        backing_marker=marker(message.backing_marker) if message.HasField("backing_marker") else None,
        snapshots=tuple(message.snapshots),
        bitmaps=tuple(message.bitmaps),
        obstacle=message.obstacle,
    )


def disk_facts_message(value: DiskFacts) -> agent_pb.DiskFacts:
    """Encode what the source tells of a disk."""
    return agent_pb.DiskFacts(
        disk=value.disk,
        path=value.path,
        format=value.format,
        virtual_size_bytes=value.virtual_size_bytes,
        allocated_bytes=value.allocated_bytes,
        top_bytes=value.top_bytes,
        create_options=value.create_options,
        data_path=value.data_path,
        backing_path=value.backing_path,
        backing_format=value.backing_format,
        backing_marker=None if value.backing_marker is None else marker_message(value.backing_marker),
        snapshots=value.snapshots,
        bitmaps=value.bitmaps,
        obstacle=value.obstacle,
    )


def disk_endpoint(message: agent_pb.DiskEndpoint) -> DiskEndpoint:
    """Decode where disks are copied to.

    Raises:
        InvalidRequest: it is no endpoint.
    """
    copies = tuple(DiskCopy(copy.disk, copy.path, copy.virtual_size_bytes, copy.is_new) for copy in message.copies)
    return DiskEndpoint(copies, message.uri, message.tunnel_token)


def disk_endpoint_message(value: DiskEndpoint) -> agent_pb.DiskEndpoint:
    """Encode where disks are copied to."""
    copies = [
        agent_pb.DiskCopy(disk=copy.disk, path=copy.path, virtual_size_bytes=copy.virtual_size_bytes, is_new=copy.is_new)
        for copy in value.copies
    ]
    return agent_pb.DiskEndpoint(copies=copies, uri=value.uri, tunnel_token=value.tunnel_token)


def disk_progress(copies: Iterable[DiskCopy], *, are_newest: bool) -> list[pb.DiskProgress]:
    """Encode how far the copies are, and whether they are newer than the originals."""
    return [
        pb.DiskProgress(
            disk=copy.disk,
            path=copy.path,
            total_bytes=copy.total_bytes,
            copied_bytes=copy.copied_bytes,
            is_ready=copy.is_ready,
            virtual_size_bytes=copy.virtual_size_bytes,
            is_newest=are_newest,
        )
        for copy in copies
    ]
