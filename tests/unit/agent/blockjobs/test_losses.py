"""What a disk has no more once a job on it is done."""

from __future__ import annotations

from uuid import UUID

import pytest

from agent.blockjobs.block_job import BlockJobRecord, Kind, Place
from agent.blockjobs.chain import Chain, Layer
from agent.blockjobs.losses import losses_of
from agent.qemu.block_status import Bitmap

TOP = Layer("/srv/top", "qcow2", "top", "top-f", 0, 0, snapshots=("of-top",))
BASE = Layer("/srv/base", "qcow2", "base", "base-f", 0, 0, snapshots=("of-base",))
CHAIN = Chain("top", (), (TOP, BASE), is_read_only=False)
BITMAPS = {"top": (Bitmap("nightly", is_persistent=True),)}


def places(*paths: str) -> tuple[Place, ...]:
    return tuple(Place(path, "qcow2", "", "") for path in paths)


def losses(kind: Kind, *after: str) -> str:
    record = BlockJobRecord(
        "id", kind, UUID(int=1), "web", "vda", "", "", "", places("/srv/top", "/srv/base"), places(*after), None, 0.0
    )
    return "\n".join(losses_of(record, CHAIN, BITMAPS))


@pytest.mark.parametrize(
    ("kind", "after", "named"),
    [
        (Kind.COPY, ("/srv/copy",), {"of-top", "of-base", "nightly"}),
        (Kind.COPY, ("/srv/copy", "/srv/base"), {"of-top", "nightly"}),
        (Kind.PULL, ("/srv/top",), {"of-base"}),
        (Kind.ACTIVE_COMMIT, ("/srv/base",), {"of-top", "nightly"}),
        (Kind.SNAPSHOT, ("/srv/new", "/srv/top", "/srv/base"), {"nightly"}),
    ],
)
def test_a_job_names_what_is_in_images_that_the_disk_leaves(kind: Kind, after: tuple[str, ...], named: set[str]):
    said = losses(kind, *after)

    assert {word for word in ("of-top", "of-base", "nightly") if word in said} == named
