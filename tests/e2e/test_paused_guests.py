"""A guest that arrived paused is like any other: it moves on, is saved and dumped, and its disks are worked on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.binaries import emulator_of, machine_of, require
from tests.e2e.by_hand import MEMORY, ByHand, another_by_hand, by_hand
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.guest import Plan
from tests.e2e.lab import PAUSED, STOPPED, Lab
from tests.e2e.move import State, post_copy, wishes
from tests.e2e.tables import cases
from tests.e2e.test_block_jobs import Blocks, written_on
from tests.e2e.user import pause, resume
from tests.e2e.waiting import until, until_equal
from tests.guests.disk import Area

# The QEMU that the guest arrives from, and the one that it arrives in.
PAIRS = [
    *[("7.2", "7.2"), ("10.0", "10.0"), ("11.1", "11.1"), ("7.2", "10.0"), ("10.0", "7.2")],
    *[("7.2", "11.1"), ("11.1", "7.2"), ("10.0", "11.1")],
]
# The guest is whole and stays where it was; see docs/qemu-notes.md.
POST_COPY_FROM_11 = pytest.mark.xfail(
    reason="post-copy of a guest that stands still, from QEMU 11.1, fails now and then", strict=False
)
DISK = Disk(area=Area(write_mib_s=1.0))
SUSPEND = modes_pb.Modes(suspend=True)
# Source: block/file-posix.c, RAW_LOCK_SHARED_BASE and BLK_PERM_WRITE: held by whoever lets no other write.
NOT_SHARED_WRITE = 201
A_FEW_TICKS_BYTES = 1 << 10


class Journey:
    """One guest, and where it and its disk are.

    Attributes:
        place: the image that the guest's disk is on.
    """

    def __init__(self, lab: Lab, guest: WritingGuest, host: str) -> None:
        self.lab = lab
        self.guest = guest
        self.host = host
        self.place = guest.images["vdb"]

    @property
    def other(self) -> str:
        """The host that the guest is not on."""
        return "host-b" if self.host == "host-a" else "host-a"

    @property
    def blocks(self) -> Blocks:
        """Jobs on its disk."""
        return Blocks(self.lab, self.host)

    def new(self, name: str) -> Path:
        """Name a file that is not there."""
        return self.lab.directory / name

    async def move(self, **wished: object) -> None:
        """Move it to the other host."""
        outcome = await (await self.lab.start_move(to=self.other, options=wishes(**wished), source=self.host)).outcome()  # type: ignore[arg-type]
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        self.host = self.other

    async def move_disk(self, name: str, **wished: object) -> None:
        """Move it to the other host with its disk."""
        place = self.new(name)
        await self.move(disks=disks_pb.DiskWishes(destination_paths={"vdb": str(place)}), **wished)
        self.place = place

    async def ferry(self, *arguments: str) -> None:
        """Give a command about VMs."""
        await asyncio.to_thread(self.lab.fleet.ferry, "vm", *arguments, check=True)


async def paused_before(journey: Journey) -> None:
    await pause(journey.lab, journey.host)
    await journey.move()


async def restored(journey: Journey) -> None:
    file = str(journey.new("first.save"))
    await journey.ferry("save", "web", file, "--host", journey.host)
    await journey.ferry("restore", file, "--host", journey.host, "--paused")


ARRIVALS: Mapping[str, Callable[[Journey], Awaitable[None]]] = {
    "suspended": lambda journey: journey.move(modes=SUSPEND),
    "paused-before": paused_before,
    "suspended-by-tunnel": lambda journey: journey.move(modes=SUSPEND, tunnel=True),
    "suspended-in-post-copy": lambda journey: journey.move(modes=SUSPEND, post_copy=post_copy()),
    "suspended-with-its-disk": lambda journey: journey.move_disk("brought.qcow2", modes=SUSPEND),
    "restored": restored,
}


async def saved(journey: Journey) -> None:
    file = str(journey.new("second.save"))
    await journey.ferry("save", "web", file, "--host", journey.host)
    await journey.ferry("restore", file, "--host", journey.host)


async def saved_with_its_vm(journey: Journey) -> None:
    await journey.ferry("save", "web", "--managed", "--host", journey.host)
    await journey.ferry("start", "web", "--host", journey.host)


async def copied(journey: Journey) -> None:
    place = journey.new("copy.qcow2")
    await journey.blocks.done(await journey.blocks.copy("vdb", place, pivot=True))
    journey.place = place


async def snapshot_taken(journey: Journey) -> None:
    place = journey.new("snap.qcow2")
    await journey.blocks.snapshot("vdb", place)
    journey.place = place


async def pulled(journey: Journey) -> None:
    await snapshot_taken(journey)
    await journey.blocks.done(await journey.blocks.pull("vdb"))


async def committed(journey: Journey) -> None:
    base = journey.place
    await snapshot_taken(journey)
    await journey.blocks.done(await journey.blocks.commit("vdb", str(base)))
    journey.place = base


NEXT: Mapping[str, Callable[[Journey], Awaitable[None]]] = {
    "pre-copy": lambda journey: journey.move(),
    "post-copy": lambda journey: journey.move(post_copy=post_copy()),
    "disks": lambda journey: journey.move_disk("moved.qcow2"),
    "post-copy-with-disks": lambda journey: journey.move_disk("moved.qcow2", post_copy=post_copy()),
    "save": saved,
    "managed-save": saved_with_its_vm,
    "dump": lambda journey: journey.ferry("dump", "web", str(journey.new("core")), "--host", journey.host),
    "copy": copied,
    "pull": pulled,
    "commit": committed,
}


@contextmanager
def locked(image: Path) -> Iterator[None]:
    """Hold the lock of a process that lets no other write to an image."""
    with image.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, NOT_SHARED_WRITE, 1, 0))
        yield


@asynccontextmanager
async def arrived_by_hand(lab: Lab, binary: str) -> AsyncIterator[ByHand]:
    """Let a guest arrive paused without Ferry, its images inactive."""
    common = (
        *("-nodefaults", "-M", "pc-q35-7.2", "-m", MEMORY, "-accel", "tcg", "-display", "none", "-serial", "chardev:s"),
        *("-chardev", "file,id=s,path=serial.log,append=on", "-drive", "file=tick.img,if=virtio,format=raw"),
    )
    capabilities = [{"capability": name, "state": True} for name in ("return-path", "late-block-activate")]
    there = ByHand(lab, lab.directory, "there.sock")
    log = lab.directory / "serial.log"
    way: dict[str, object] = {"uri": f"unix:{lab.directory}/way"}
    set_up: tuple[str, dict[str, object]] = ("migrate-set-capabilities", {"capabilities": capabilities})
    incoming = ("-qmp", "unix:there.sock,server=on,wait=off", "-incoming", "defer", "-S")
    async with (
        by_hand(lab, binary, *common, "-qmp", "unix:q.sock,server=on,wait=off") as here,
        another_by_hand(there, binary, *common, *incoming),
    ):
        await until(lambda: log.exists() and log.stat().st_size > A_FEW_TICKS_BYTES, "a guest that ticks")
        await there.ask(set_up, ("migrate-incoming", way))
        await here.ask(set_up, ("stop", {}), ("migrate", way))
        await until_equal(lambda: _is_complete(there), wanted=True)
        await here.ask(("quit", {}))
        yield there


async def _is_complete(hand: ByHand) -> bool:
    (report,) = await hand.ask(("query-migrate", {}))
    return cast("dict[str, object]", report).get("status") == "completed"


async def start(lab: Lab, pair: tuple[str, str]) -> Journey:
    """Start a guest whose next move leads from one QEMU to the other."""
    plan = DiskPlan(emulator=emulator_of(pair), machine=machine_of(pair), disks=(DISK,))
    return Journey(lab, await start_disk_guest(lab, plan), "host-a")


async def assert_goes_on(journey: Journey) -> None:
    """Fail unless the guest is still paused, and whole when it is resumed."""
    lab, guest, host = journey.lab, journey.guest, journey.host
    await lab.assert_only_on(host, guest, PAUSED)
    await resume(lab, host)
    await written_on(guest, "vdb")
    await leave(lab, guest, host)
    guest.assert_whole()
    guest.assert_disk("vdb", journey.place, is_final=True)


CHAIN = ("dump", "pull", "copy", "pre-copy", "post-copy", "disks", "save", "managed-save")
COVERING = [(("7.2", "7.2"), "suspended", "pre-copy"), (("7.2", "10.0"), "paused-before", "commit")]


@cases(("pair", "arrival", "then"), (PAIRS, list(ARRIVALS), list(NEXT)), COVERING)
async def test_a_guest_that_arrived_paused_is_like_any_other(pair, arrival: str, then: str, lab: Lab, request):
    if then.startswith("post-copy") and pair[arrival != "restored"] == "11.1":
        request.applymarker(POST_COPY_FROM_11)
    journey = await start(lab, pair)
    await ARRIVALS[arrival](journey)

    await NEXT[then](journey)

    await assert_goes_on(journey)


@cases(("pair", "arrival"), (PAIRS, list(ARRIVALS)), [(("7.2", "7.2"), "restored"), (("10.0", "11.1"), "suspended")])
async def test_a_guest_that_stays_paused_goes_through_all_that_can_be_done_with_it(pair, arrival: str, lab: Lab, request):
    if pair[arrival == "restored"] == "11.1":
        request.applymarker(POST_COPY_FROM_11)
    journey = await start(lab, pair)
    await ARRIVALS[arrival](journey)

    for then in CHAIN:
        await NEXT[then](journey)

    await assert_goes_on(journey)


@pytest.mark.parametrize(
    ("version", "then"),
    [
        ("7.2", "pre-copy"),
        pytest.param("7.2", "save", marks=pytest.mark.matrix),
        pytest.param("10.0", "pre-copy", marks=pytest.mark.matrix),
        pytest.param("10.0", "save", marks=pytest.mark.matrix),
    ],
)
async def test_a_guest_whose_images_were_left_inactive_is_made_sound_before_anything_is_done_with_it(
    version: str, then: str, lab: Lab
):
    """As one that an older Ferry brought, or that came by hand."""
    here, there = ("host-a", "host-b") if version == "7.2" else ("host-b", "host-a")
    async with arrived_by_hand(lab, require(version)) as hand:
        guest = await hand.guest((await hand.adopt(here)).vm.uuid)
        await lab.kill(f"agent-{here[-1]}")
        await lab.restart(f"agent-{here[-1]}")
        await lab.wait_reachable()

        with locked(hand.directory / "tick.img"):
            given_up = await (await lab.start_move(guest.name, there, source=here)).outcome()
        assert given_up.state == State.STATE_FAILED
        assert "tick.img" in given_up.error
        assert "another process holds its lock" in given_up.error
        if then == "save":
            file = str(lab.directory / "web.save")
            for words in (("save", "web", file), ("restore", file, "--paused")):
                await asyncio.to_thread(lab.fleet.ferry, "vm", *words, "--host", here, check=True)
        outcome = await (await lab.start_move(guest.name, there, source=here)).outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await lab.assert_only_on(there, guest, PAUSED, is_persistent=then != "save")
        await resume(lab, there)
        await guest.console.wait_sweeps(2)
        guest.assert_whole()


@pytest.mark.parametrize("version", ["7.2", *(pytest.param(version, marks=pytest.mark.matrix) for version in ("10.0", "11.1"))])
async def test_while_another_process_has_its_image_a_guest_neither_arrives_nor_is_restored(version: str, lab: Lab):
    guest = await lab.start_guest(plan=Plan(emulator=require(version)))
    (image,), file = lab.directory.glob("*.img"), str(lab.directory / "web.save")

    with locked(image):
        move = await lab.start_move(options=wishes(modes=SUSPEND))
        await move.wait_source(lambda half: "another process holds its lock" in half.waiting_for, "the reason why it waits")
    outcome = await move.outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest, PAUSED)
    await asyncio.to_thread(lab.fleet.ferry, "vm", "save", "web", file, check=True)
    with locked(image):
        refused = await asyncio.to_thread(lab.fleet.ferry, "vm", "restore", file, "--host", "host-b")
    assert (refused.returncode, "IMAGE_LOCKED" in refused.stderr, "the file is as it was" in refused.stderr) == (1, True, True)
    assert await lab.vms("host-b") == {"web": STOPPED}
    await asyncio.to_thread(lab.fleet.ferry, "vm", "restore", file, "--host", "host-b", check=True)

    await lab.assert_only_on("host-b", guest, PAUSED)
    await resume(lab, "host-b")
    await guest.console.wait_sweeps(2)
    guest.assert_whole()
