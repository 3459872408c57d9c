"""What tests of moves with disks share: where copies go, and what the wishes for that are."""

from __future__ import annotations

from pathlib import Path

from ferry.common.v1 import disks_pb2 as disks_pb
from tests.e2e.disk_guest import WritingGuest


def places(guest: WritingGuest) -> dict[str, Path]:
    """Say where the copy of each disk goes, by target; on one machine it cannot be the same path."""
    return {target: path.with_name(f"copy-of-{path.name}") for target, path in guest.images.items()}


def copied_to(guest: WritingGuest, **more: object) -> disks_pb.DiskWishes:
    """Wish that the disks that the guest writes to are copied there."""
    paths = {target: str(path) for target, path in places(guest).items()}
    return disks_pb.DiskWishes(destination_paths=paths, **more)  # type: ignore[arg-type]  # fields of the message


def allocated_bytes(path: Path) -> int:
    """Say what an image takes on its storage."""
    return path.stat().st_blocks * 512
