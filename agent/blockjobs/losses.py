"""What a disk has no more once a job is done: snapshots inside of images that it leaves, and dirty bitmaps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.blockjobs.block_job import Kind
from agent.blockjobs.chain import is_same

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.blockjobs.block_job import BlockJobRecord
    from agent.blockjobs.chain import Chain
    from agent.qemu.block_status import Bitmap

_WHEN: Final = {
    Kind.COPY: "after a pivot",
    Kind.ACTIVE_COMMIT: "after the pivot",
    Kind.PULL: "after the pull",
    Kind.COMMIT: "after the commit",
}


def losses_of(record: BlockJobRecord, chain: Chain, bitmaps: Mapping[str, tuple[Bitmap, ...]]) -> tuple[str, ...]:
    """Say, a sentence each, what the disk has no more when a job has done what it does."""
    return tuple(_losses(record, chain, bitmaps))


def _losses(record: BlockJobRecord, chain: Chain, bitmaps: Mapping[str, tuple[Bitmap, ...]]) -> Iterator[str]:
    above = [bitmap.name for node in (*chain.filters, chain.top.node) for bitmap in bitmaps.get(node, ())]
    if record.kind is Kind.SNAPSHOT:
        if above:
            text = f"{_bitmaps(above)} of disk {record.disk}: after the snapshot it records no new write"
            yield f"{text}, the next backup has to be a full one"
        return
    for layer in chain.layers:
        if any(is_same(layer.path, place.path) for place in record.after):
            continue
        if layer.snapshots:
            text = f"snapshot {', '.join(layer.snapshots)} inside of {layer.path}"
            yield f"{text}: {_WHEN[record.kind]} disk {record.disk} has it no more, that image keeps it"
        names = above if layer is chain.top else [bitmap.name for bitmap in bitmaps.get(layer.node, ())]
        if names:
            text = f"{_bitmaps(names)} of disk {record.disk}: {_WHEN[record.kind]} it records no more"
            yield f"{text}, the next backup has to be a full one"


def _bitmaps(names: list[str]) -> str:
    return f"dirty bitmap {', '.join(names)}"
