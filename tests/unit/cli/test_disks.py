"""Disks of a move as they are typed, and how far they are as it is shown."""

from __future__ import annotations

import pytest

from coordinator.cli.exits import ExitCode
from coordinator.cli.progress import PlainProgress
from coordinator.cli.screen import Screen
from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import migration

MIB = 1 << 20
D = disks_pb.DiskWishes
MOVED = migration(pb.Migration.STATE_SUCCEEDED, pb.Migration.GUEST_LOCATION_DESTINATION)


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("--disks all", D(which=D.WHICH_ALL)),
        ("--disks none", D(which=D.WHICH_NONE)),
        ("--disks vda,vdb", D(which=D.WHICH_NAMED, names=["vda", "vdb"])),
        ("--disks-mode top", D(mode=D.MODE_TOP)),
        ("--disk-bandwidth 10MiB/s", D(bandwidth_bytes_per_second=10 * MIB)),
        ("--dest-path vda=/x --dest-path vdb=/y=z", D(destination_paths={"vda": "/x", "vdb": "/y=z"})),
        ("--disks vda --reuse", D(which=D.WHICH_NAMED, names=["vda"], reuse=True)),
    ],
)
async def test_what_is_wished_of_disks_travels_as_it_was_typed(typed, sent, fleet):
    fleet.coordinator.story = [MOVED]

    await fleet.ferry("migrate", "web", "--to", "host-b", *typed.split())

    assert fleet.coordinator.requests[0].options.disks == sent


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--disks vda,", "--disks vda,"),
        ("--disks none --reuse", "--disks none"),
        ("--dest-path vda", "DISK=FILE"),
        ("--dest-path vda=x", "absolute"),
        ("--dest-path vda=/x --dest-path vda=/y", "vda is given twice"),
        ("--disk-bandwidth 1KiB/s", "64KiB/s"),
        ("--disks-mode half", "half"),
    ],
)
async def test_what_cannot_be_wished_of_disks_is_told(typed, words, fleet):
    told = await fleet.ferry("migrate", "web", "--to", "host-b", *typed.split())

    assert told.code is ExitCode.USAGE
    assert words in told.err


def test_the_line_tells_disks_and_memory_apart(capsys):
    state = migration(pb.Migration.STATE_TRANSFERRING)
    state.progress.disks.add(disk="vda", path="/srv/a", total_bytes=100 * MIB, copied_bytes=100 * MIB, is_ready=True)
    state.progress.disks.add(disk="vdb", path="/srv/b", total_bytes=100 * MIB, copied_bytes=50 * MIB)

    PlainProgress(Screen()).update(state)
    state.progress.disks[1].is_ready = True
    PlainProgress(Screen()).update(state)

    told = ["disk vda is copied to /srv/a", "disk vdb is copied to /srv/b"]
    assert capsys.readouterr().err.splitlines() == [
        *told,
        "web: host-a -> host-b  transferring: disks, 75 %, 50.0 MiB of 200 MiB left, vda copied, vdb 50 %",
        *told,
        "web: host-a -> host-b  transferring",
    ]
