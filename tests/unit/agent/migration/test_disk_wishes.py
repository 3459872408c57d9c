"""What may be wished of disks, and what the source tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.migration.disk_facts import describe_disks, totals
from agent.migration.disk_wishes import DiskPlace, DiskWishes, Mode, Which
from agent.migration.forecast import Span
from agent.migration.modes import Modes
from agent.migration.order import Options
from agent.plan.copying import SETUP_S, copying
from agent.qemu.block_commands import BlockCommands
from agent.qemu.block_status import DriveReport, decode_drives
from agent.store import Store
from common.errors import InvalidRequest
from tests.unit.agent.vm.test_disk_images import BLOCK, CDROM, CHAIN, NETWORK, SHARED, definition

GIB = 1 << 30


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"which": Which.NAMED}, "names are wanted"),
        ({"names": ("vda",)}, "names are wanted"),
        ({"which": Which.NAMED, "names": ("vda", "vda")}, "named twice"),
        ({"bandwidth_bytes_per_second": 1}, "at least 65536"),
        ({"bandwidth_bytes_per_second": -1}, "at least 65536"),
        ({"which": Which.NONE, "reuse": True}, "disks none"),
        ({"places": (DiskPlace("vda", "x"),)}, "vda=x"),
        ({"places": (DiskPlace("vda", "/a/../b"),)}, r"vda=/a/\.\./b"),
        ({"places": (DiskPlace("vda", "/"),)}, "vda=/"),
    ],
)
def test_wishes_that_cannot_be_are_refused(wishes, words):
    with pytest.raises(InvalidRequest, match=words):
        DiskWishes(**wishes)


def test_disks_of_a_stopped_vm_are_not_copied():
    with pytest.raises(InvalidRequest, match="disks and offline"):
        Options(modes=Modes(offline=True), disks=DiskWishes(which=Which.ALL))
    Options(modes=Modes(offline=True), disks=DiskWishes(places=(DiskPlace("vda", "/x"),)))


class FakeBlocks(BlockCommands):
    """What `query-block` says."""

    def __init__(self, *drives: DriveReport) -> None:
        self._drives = drives

    async def query_drives(self) -> tuple[DriveReport, ...]:
        return self._drives


def drive(device: str, image: dict[str, object]) -> DriveReport:
    qdev = f"/machine/peripheral/{device}/virtio-backend"
    inserted = {"node-name": "top", "ro": False, "image": image}
    return decode_drives([{"device": "", "qdev": qdev, "inserted": inserted}])[0]


QCOW2 = {
    "filename": "/srv/top",
    "format": "qcow2",
    "virtual-size": GIB,
    "actual-size": 300,
    "cluster-size": 65536,
    "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "extended-l2": False, "refcount-bits": 16, "corrupt": False}},
    "snapshots": [{}],
    "backing-image": {"filename": "/proc/nowhere/mid", "format": "raw", "virtual-size": GIB, "actual-size": 500},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", run_dir=tmp_path / "run")


async def test_an_image_is_described_so_that_another_can_be_made_like_it(store: Store):
    running = definition(CHAIN)

    [facts] = await describe_disks(FakeBlocks(drive("virtio-disk0", QCOW2)), running, running, DiskWishes(), store)

    assert (facts.disk, facts.path, facts.format, facts.virtual_size_bytes) == ("vda", "/srv/top", "qcow2", GIB)
    assert (facts.allocated_bytes, facts.top_bytes, len(facts.snapshots)) == (800, 300, 1)
    assert facts.create_options == ("compat=1.1", "refcount_bits=16", "extended_l2=off", "cluster_size=65536")
    assert not facts.obstacle
    assert totals({"vda": facts}, ["vda"], Mode.TOP) == 300


async def test_a_backing_image_whose_place_takes_no_proof_cannot_be_relied_on(store: Store):
    running = definition(CHAIN)

    [facts] = await describe_disks(FakeBlocks(drive("virtio-disk0", QCOW2)), running, running, DiskWishes(mode=Mode.TOP), store)

    assert "/proc/nowhere/mid" in facts.obstacle
    assert not store.markers()


@pytest.mark.parametrize(
    ("change", "word"),
    [({"format": "vmdk"}, "vmdk"), ({"format-specific": {"type": "qcow2", "data": {"encrypt": {}}}}, "encrypted")],
)
async def test_an_image_that_cannot_be_made_again_is_an_obstacle(change, word, store: Store):
    running = definition(CHAIN)
    image = json.loads(json.dumps(QCOW2 | change))

    [facts] = await describe_disks(FakeBlocks(drive("virtio-disk0", image)), running, running, DiskWishes(), store)

    assert word in facts.obstacle


async def test_what_a_disk_is_may_be_an_obstacle(store: Store):
    running = definition(CDROM, NETWORK, SHARED)

    found = {one.disk: one.obstacle for one in await describe_disks(FakeBlocks(), running, running, DiskWishes(), store)}

    assert {disk: word in found[disk] for disk, word in {"sda": "read-only", "vdd": "no file", "vde": "shareable"}.items()} == {
        "sda": True,
        "vdd": True,
        "vde": True,
    }


async def test_a_block_device_takes_what_it_is(store: Store):
    running = definition(BLOCK)
    image = {"filename": "/dev/sdx", "format": "raw", "virtual-size": GIB, "actual-size": 0}

    [facts] = await describe_disks(FakeBlocks(drive("virtio-disk2", image)), running, running, DiskWishes(), store)

    assert facts.allocated_bytes == GIB


async def test_a_file_that_is_one_hole_takes_nothing(store: Store, tmp_path: Path):
    path = tmp_path / "empty.raw"
    path.touch()
    running = definition(BLOCK)
    image = {"filename": str(path), "format": "raw", "virtual-size": 1024 * GIB, "actual-size": 0}

    [facts] = await describe_disks(FakeBlocks(drive("virtio-disk2", image)), running, running, DiskWishes(), store)

    assert facts.allocated_bytes == 0


def test_a_forecast_of_copying_knows_the_way_and_the_bound():
    way = Span(50e6, 100e6, 200e6)

    free, bound = copying(10**9, way, 0), copying(10**9, way, 10**7)

    assert copying(0, way, 0) is None
    assert free is not None
    assert bound is not None
    assert 5 <= free.low < free.likely < free.high
    assert bound.likely == pytest.approx(100 + SETUP_S)
