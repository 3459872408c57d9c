"""Disks of QEMUs that were started by hand, as people write them, are copied with their guest or proved to be the same."""

from __future__ import annotations

import json

import pytest

from ferry.common.v1 import disks_pb2 as disks_pb
from tests.e2e.binaries import require
from tests.e2e.by_hand import MEMORY, by_hand
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.test_disk_shapes import assert_equal, make_image, write

COMMON = (
    *("-nodefaults", "-M", "pc-q35-7.2", "-m", MEMORY, "-accel", "tcg", "-display", "none"),
    *("-qmp", "unix:q.sock,server=on,wait=off", "-serial", "file:serial.log"),
)
JSON = {"driver": "qcow2", "node-name": "data", "file": {"driver": "file", "filename": "data.qcow2"}}
WORDS = "driver=raw,node-name=boot,file.driver=file,file.filename=tick.img"
WAYS = {
    "drives": (
        *("-drive", "if=none,id=boot,format=raw,file=tick.img", "-device", "virtio-blk,drive=boot"),
        *("-drive", "if=none,id=data,file=data.qcow2", "-device", "virtio-blk,drive=data"),
    ),
    "nodes": (
        "-blockdev",
        WORDS,
        "-device",
        "virtio-blk,drive=boot",
        "-blockdev",
        json.dumps(JSON),
        "-device",
        "virtio-blk,drive=data",
    ),
}


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("way", WAYS)
async def test_disks_of_an_adopted_guest_are_copied_or_proved_to_be_the_same(way, version, lab: Lab):
    here, there = ("host-a", "host-b") if version == "7.2" else ("host-b", "host-a")
    data, copy = make_image(lab.directory / "data.qcow2", "qcow2", "8M"), lab.directory / "copy.qcow2"
    write(data, "qcow2", "write -P 5 1M 1M")
    async with by_hand(lab, require(version), *COMMON, *WAYS[way]) as hand:
        guest = await hand.guest((await hand.adopt(here)).vm.uuid)
        boot = lab.directory / "copy.raw"
        places = {"boot": str(boot), "data": str(copy)}

        elsewhere = disks_pb.DiskWishes(which=disks_pb.DiskWishes.WHICH_NONE, destination_paths={"data": str(copy)})
        refused = await (await lab.start_move(guest.name, there, wishes(disks=elsewhere), source=here)).outcome()
        options = wishes(disks=disks_pb.DiskWishes(destination_paths=places))
        outcome = await (await lab.start_move(guest.name, there, options, source=here)).outcome()

        assert (refused.state, refused.error_reason) == (State.STATE_FAILED, "DISK_NOT_SHARED"), refused.error
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert {disk.disk: disk.path for disk in outcome.progress.disks} == places
        await guest.console.wait_sweeps(2)
        await lab.assert_only_on(there, guest)
        guest.assert_whole()
    assert_equal(data, copy, "qcow2")
