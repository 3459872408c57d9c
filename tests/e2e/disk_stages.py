"""Moves of a disk guest with its disk, brought to where a fault is to happen; and what must hold after it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1.budget_pb2 import POLICY_FAST
from tests.e2e.disk_guest import Disk, DiskPlan, WritingGuest, leave, start_disk_guest
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, Half, Move, State, Where, Whole
from tests.e2e.qemu_state import QemuState, assert_state, state_of, watched_emulator
from tests.e2e.waiting import until
from tests.guests.disk import Area, create_image, write_to_image

MIB = 1 << 20
SLOW_MIB_S = 1.0
COLD_MIB = 24
AREA = Area(slot_count=1024, write_mib_s=2.0, verify_mib_s=2.0)
STANDS_STILL_S = 0.4
# While a test keeps the source's agent from its next step: a guardian takes the guest back after that.
SETTLING_DOWNTIME_S = 2.0


class Stage(Enum):
    """Where in a move a fault happens."""

    COPYING = "copying"
    """The disk is copied, and most of it is still to come."""
    SENDING = "sending"
    """The copy is ready, and memory is on its way for as long as nothing happens."""
    SETTLING = "settling"
    """The copy is ready, and the guest stands still soon."""
    ALL = "all"
    """The move is as fast as it can be."""


@dataclass(frozen=True, slots=True)
class _Slowness:
    disk_mib_s: float
    memory_mib_s: float


_SLOWNESS = {
    Stage.COPYING: _Slowness(SLOW_MIB_S, 0),
    Stage.SENDING: _Slowness(0, 2.0),
    Stage.SETTLING: _Slowness(0, 1.0),
    Stage.ALL: _Slowness(0, 0),
}


@dataclass(frozen=True, slots=True)
class DiskMove:
    """A guest, its move, and what was before it."""

    lab: Lab
    guest: WritingGuest
    move: Move
    stage: Stage
    copies: Mapping[str, Path]
    before: QemuState
    since_s: float
    way: str
    reuses: bool
    source: str = "host-a"
    destination: str = "host-b"

    @property
    def copy(self) -> Path:
        """Where the copy of the first disk goes."""
        return self.copies["vdb"]

    async def reach(self) -> None:
        """Wait until the move is where its fault is to happen; not for SETTLING."""
        if self.stage is Stage.COPYING:
            await self.move.wait_source(
                lambda half: (
                    half.phase == "Mirroring" and 0 < half.progress.disks[0].copied_bytes < half.progress.disks[0].total_bytes
                ),
                "a disk on its way",
            )
        else:
            await self.move.wait_transferring()

    async def copied_bytes(self) -> int:
        """Ask how much of the disk is copied."""
        [disk] = (await self.move.at_source()).progress.disks
        return disk.copied_bytes

    @asynccontextmanager
    async def stopped_for_settling(self) -> AsyncIterator[int]:
        """Let QEMU stop the guest for the switch-over, and keep the source's agent from its next step until the block ends.

        Gives the process of the destination's QEMU.
        """
        await self.move.wait_source_phase("Transferring")
        destination = await self.lab.qemu_pid(self.destination)
        with frozen(self.lab.fleet.pid(self.source.replace("host", "agent"))):
            await self.guest.wait_silent(STANDS_STILL_S)
            yield destination

    def written_bytes(self) -> int:
        """Say how much the guest has written since it was started; a copy counts that as copied."""
        return self.guest.console.last(1).issued * AREA.slot_bytes

    async def kill_destination(self) -> None:
        """End the destination's QEMU as a crash would."""
        os.kill(await self.lab.qemu_pid(self.destination), signal.SIGKILL)

    async def assert_kept(self, state: State.ValueType, *reasons: str, words: tuple[str, ...] = ()) -> Whole:
        """Fail unless the move ends like this, the guest runs on where it was, and nothing of the move is left."""
        outcome = await self.move.outcome(timeout_s=60)
        assert outcome.state == state, outcome.error
        assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
        assert outcome.error_reason in reasons, f"{outcome.error_reason}: {outcome.error}"
        for word in words:
            assert word in outcome.error, outcome.error
        await self.assert_as_before()
        return outcome

    async def assert_as_before(self) -> None:
        """Fail unless the guest runs and writes on the source, and there is nothing that was not there before the move."""
        await self.lab.assert_only_on(self.source, self.guest)
        await assert_state(self.lab, self.before, self.source)
        for disk in map(self.guest.plan.index, self.copies):
            await self.guest.console.wait_written(20, disk=disk)
            await self.guest.console.wait_flushed(disk=disk)
        self.guest.assert_whole()
        await until(lambda: not self.traces(), f"nothing left, but there is: {self.traces()}")

    def traces(self) -> list[str]:
        """Name the files of the copy that are there, and what hangs in the servers' directories beside the running guest."""
        made = () if self.reuses else self.copies.values()
        found = [str(path) for path in (*made, *self.lab.directory.glob(".ferry-*")) if path.exists()]
        state = self.lab.fleet.directory / self.destination
        return found + [str(path) for directory in ("keys", "run") for path in (state / directory).iterdir()]

    async def assert_moves_now(self) -> None:
        """Fail unless the same move succeeds at once, and its copy passes the write check."""
        options = WAYS[self.way](disks=all_copied_to(self.copies, reuse=self.reuses))
        move = await self.lab.start_move(self.guest.name, self.destination, options, source=self.source)
        outcome = await move.outcome(timeout_s=60)
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await self.assert_arrived()

    async def assert_arrived(self) -> None:
        """Fail unless the guest runs on the destination alone, and its copy has every acknowledged write."""
        lab, guest = self.lab, self.guest
        await lab.assert_only_on(self.destination, guest)
        there = await state_of(lab, self.destination)
        assert (there.jobs, there.exports, there.connections, there.objects) == ((), (), (), self.before.objects)
        for disk in map(guest.plan.index, self.copies):
            await guest.console.wait_disk_sweeps(2, disk=disk)
        guest.assert_whole()
        await leave(lab, guest, self.destination)
        for target, copy in self.copies.items():
            guest.assert_disk(target, copy, is_final=True)


def _is_copying(half: Half) -> bool:
    return half.phase == "Mirroring" and 0 < half.progress.disks[0].copied_bytes < half.progress.disks[0].total_bytes


def copied_to(path: Path, *, bandwidth_mib_s: float = 0, reuse: bool = False) -> disks_pb.DiskWishes:
    """Wish that `vdb` is copied."""
    return all_copied_to({"vdb": path}, bandwidth_mib_s=bandwidth_mib_s, reuse=reuse)


def all_copied_to(copies: Mapping[str, Path], *, bandwidth_mib_s: float = 0, reuse: bool = False) -> disks_pb.DiskWishes:
    """Wish that these disks are copied, each to its place."""
    return disks_pb.DiskWishes(
        which=disks_pb.DiskWishes.WHICH_NAMED,
        names=[*copies],
        destination_paths={target: str(path) for target, path in copies.items()},
        bandwidth_bytes_per_second=round(bandwidth_mib_s * MIB),
        reuse=reuse,
    )


def cold_disk(directory: Path, *, kind: str = "qcow2", size_mib: int = 64, target: str = "vdb") -> Disk:
    """Make a disk with an area to write to, and data that nobody touches behind it."""
    path = create_image(directory / f"{target}.{kind}", size_mib * MIB, kind=kind)
    write_to_image(path, {16 * MIB: b"\x07" * (COLD_MIB * MIB)}, kind=kind)
    return Disk(size_mib=size_mib, kind=kind, area=AREA, path=path)


@contextmanager
def file_system(directory: Path, size_mib: int) -> Iterator[Path]:
    """Mount a file system of this size; needs root."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
        directory.rmdir()


async def start_disk_move(  # noqa: PLR0913 -- what tests vary
    lab: Lab,
    stage: Stage,
    way: str = "psk",
    *,
    pair: tuple[str, str] = ("7.2", "10.0"),
    plan: DiskPlan | None = None,
    copy: Path | None = None,
    copies: Mapping[str, Path] | None = None,
    reuse: bool = False,
) -> DiskMove:
    """Start a guest with a disk that is not shared, and let it be moved, so slowly that a fault can happen at a stage.

    Args:
        lab: a watched fleet.
        stage: how slowly.
        way: how it moves.
        pair: the QEMUs of source and destination; where they differ, the hosts' own.
        plan: the guest; one with a cold disk where it is None.
        copy: where the copy of its disk goes.
        copies: where those of its disks go, where it has several, by their targets.
        reuse: whether that is there already.
    """
    plan = plan or DiskPlan(disks=(cold_disk(lab.directory),))
    plan = replace(plan, emulator=watched_emulator(lab, pair[0])) if pair[0] == pair[1] else plan
    source, destination = ("host-b", "host-a") if pair == ("10.0", "7.2") else ("host-a", "host-b")
    guest = await start_guest_to_move(lab, stage, plan=plan, host=source)
    copies = copies or {"vdb": copy or lab.directory / "there.qcow2"}
    return await begin_disk_move(lab, guest, stage, way, copies=copies, reuse=reuse, source=source, destination=destination)


async def start_guest_to_move(lab: Lab, stage: Stage, *, plan: DiskPlan, host: str = "host-a") -> WritingGuest:
    """Start a guest, as busy as its move is to be slow."""
    memory = {"memory_mib": 4, "dirty_mib_s": 0.05} if stage is Stage.SETTLING else {"memory_mib": 16, "dirty_mib_s": 8.0}
    return await start_disk_guest(lab, replace(plan, **memory), host=host)  # type: ignore[arg-type]  # replace() checks the names


async def begin_disk_move(  # noqa: PLR0913 -- what tests vary
    lab: Lab,
    guest: WritingGuest,
    stage: Stage,
    way: str = "psk",
    *,
    copies: Mapping[str, Path],
    reuse: bool = False,
    source: str = "host-a",
    destination: str = "host-b",
) -> DiskMove:
    """Let a guest be moved, so slowly that a fault can happen at a stage."""
    slowness = _SLOWNESS[stage]
    before = await state_of(lab, source)
    disks = all_copied_to(copies, bandwidth_mib_s=slowness.disk_mib_s, reuse=reuse)
    since_s = now_s()
    downtime_s = SETTLING_DOWNTIME_S if stage is Stage.SETTLING else None
    options = WAYS[way](disks=disks, bandwidth_mib_s=slowness.memory_mib_s, policy=POLICY_FAST, max_downtime_s=downtime_s)
    move = await lab.start_move(guest.name, destination, options, source=source)
    return DiskMove(lab, guest, move, stage, copies, before, since_s, way, reuse, source, destination)
