"""Measures moves of a guest together with its disk, by QEMU alone and by Ferry."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import WrongState
from deploy.lab.ports import PortRange
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.bench import raw, raw_disks
from tests.bench.disk_guest import BEFORE_S, TARGET, DiskMove, allocated_bytes, disk_guest, make_copy, make_disk
from tests.bench.disk_sample import WAYS, DiskRun, DiskSample, Writes
from tests.bench.measure import BOOT_TIMEOUT_S, COOL_S, SETTLE_S, SOURCE, Bench, silence_s
from tests.bench.ways import FerryWay, RawWay
from tests.bench.wire import Meter, TcpMeter, TunnelMeter, followed
from tests.guests.disk_console import DiskConsole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.fleet import Fleet

# Images lie in memory. On storage a flush of one waits for all that the other has yet to write, the guest's console with it.
_MEMORY: Final = "/dev/shm"
_NS: Final = 1e9


async def measure(bench: Bench, fleet: Fleet, rounds: int) -> DiskRun:
    """Let the ways take turns; each round begins with another one."""
    with tempfile.TemporaryDirectory(prefix="fb", dir=_MEMORY) as name:
        disk = await asyncio.to_thread(make_disk, Path(name))
        return await _rounds(_Moves(bench, fleet, disk), rounds)


async def _rounds(moves: _Moves, rounds: int) -> DiskRun:
    samples, names = [], tuple(WAYS)
    for number in range(rounds):
        first = number % len(names)
        for way in (*names[first:], *names[:first]):
            sample = replace(await moves.move(WAYS[way]), round_number=number, way=way)
            samples.append(sample)
            print(f"disks, round {number + 1} of {rounds}, {way}: {sample.elapsed_s * 1000:.0f} ms", file=sys.stderr)
    return DiskRun(samples)


class _Moves:
    def __init__(self, bench: Bench, fleet: Fleet, disk: Path) -> None:
        self._bench = bench
        self._fleet = fleet
        self._disk = disk

    async def move(self, way: RawWay | FerryWay) -> DiskSample:
        """Start a guest, move it and its disk, and end it."""
        await asyncio.sleep(COOL_S)
        with tempfile.TemporaryDirectory(prefix="fb", dir=self._disk.parent) as name:
            move = await asyncio.to_thread(disk_guest, Path(name), self._disk)
            with DiskConsole(move.guest.serial) as console:
                match way:
                    case RawWay(options):
                        return await _move_raw(move, console, options)
                    case FerryWay(options):
                        return await self._move_ferry(move, console, options)

    async def _move_ferry(self, move: DiskMove, console: DiskConsole, options: Sequence[str]) -> DiskSample:
        meter = self._meter(options)
        async with self._bench.guest(move.guest, console):
            await _warm_up(console)
            wall_offset_s = time.time() - time.monotonic()
            began_s = time.monotonic()
            async with followed(meter):
                migration, cpu_s = await self._bench.migrate(*options, "--disks", "all", "--dest-path", f"{TARGET}={move.copy}")
            command_s = time.monotonic() - began_s - SETTLE_S
            if migration.state != pb.Migration.STATE_SUCCEEDED:
                raise WrongState(f"the guest was not moved: {migration.error}")
            moments = await self._bench.moments(migration.id)
            times = [
                moments.began_s("qmp blockdev-add"),
                moments.ended_s("block.mirror"),
                moments.began_s("qmp migrate"),
                moments.began_s("migration.downtime"),
                moments.ended_s("migration.downtime"),
            ]
            legs_s = {leg.name: leg.duration.ToNanoseconds() / _NS for leg in migration.downtime.legs}
            sample = await _sample(
                move,
                console,
                meter,
                [at_s - wall_offset_s for at_s in times],
                settle_s=legs_s["settle"],
                qemu_downtime_s=migration.downtime.qemu_reported.ToNanoseconds() / _NS,
                transferred_bytes=migration.progress.ram_transferred_bytes,
            )
            resident_bytes = self._bench.agent_resident_bytes()
        return replace(sample, command_s=command_s, cpu_s=cpu_s, agent_resident_bytes=resident_bytes)

    def _meter(self, options: Sequence[str]) -> Meter:
        if "--tunnel" in options:
            return TunnelMeter(self._fleet.directory / SOURCE / "tunnel.sock")
        return TcpMeter(self._fleet.ports.pool(1))


async def _move_raw(move: DiskMove, console: DiskConsole, options: raw.Options) -> DiskSample:
    directory, port = move.image.parent, _free_port()
    meter = TcpMeter(PortRange(port, port))
    async with raw.start(move.guest.raw, directory / "a") as source:
        await console.wait_ticks(timeout_s=BOOT_TIMEOUT_S)
        await asyncio.to_thread(make_copy, move)
        async with raw.start(move.arriving, directory / "b", incoming=True) as destination:
            await _warm_up(console)
            async with followed(meter):
                figures = await raw_disks.move(source, destination, options, port)
            return await _sample(
                move,
                console,
                meter,
                [
                    figures.started_at_s,
                    figures.ready_at_s,
                    figures.sent_at_s,
                    figures.stopped_at_s,
                    figures.resumed_at_s,
                ],
                settle_s=figures.settle_s,
                qemu_downtime_s=figures.qemu_downtime_s,
                transferred_bytes=figures.transferred_bytes,
            )


async def _warm_up(console: DiskConsole) -> None:
    await console.wait_written()
    await asyncio.sleep(BEFORE_S)


async def _sample(  # noqa: PLR0913 - one for each thing that was seen
    move: DiskMove,
    console: DiskConsole,
    meter: Meter,
    moments_s: Sequence[float],
    *,
    settle_s: float,
    qemu_downtime_s: float,
    transferred_bytes: int,
) -> DiskSample:
    started_s, ready_s, sent_s, stopped_s, resumed_s = moments_s
    await console.wait_written()
    return DiskSample(
        elapsed_s=resumed_s - started_s,
        copy_s=ready_s - started_s,
        turn_s=sent_s - ready_s,
        memory_s=stopped_s - sent_s,
        standstill_s=resumed_s - stopped_s,
        settle_s=settle_s,
        qemu_downtime_s=qemu_downtime_s,
        gap_s=await silence_s(console, started_s, resumed_s),
        wire_bytes=await meter.read(),
        allocated_bytes=allocated_bytes(move.image),
        copy_allocated_bytes=allocated_bytes(move.copy),
        transferred_bytes=transferred_bytes,
        writes_before=_writes(console, started_s - BEFORE_S, started_s),
        writes=_writes(console, started_s, ready_s),
        writes_mirrored=_writes(console, ready_s, stopped_s),
    )


def _writes(console: DiskConsole, since_s: float, until_s: float) -> Writes:
    said = console.latencies(since_s=since_s, until_s=until_s)
    slowest_s = console.slowest_write_s(since_s=since_s, until_s=until_s)
    return Writes(said.write_count, said.percentile_us(50) / 1e6, said.percentile_us(99) / 1e6, slowest_s)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
