"""The disk guest tells the truth: its disks copied, and made to fail, by raw QEMU with nothing of Ferry between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench import raw
from tests.binaries import skip_without
from tests.guests.disk import LEFT_ALONE, Area, DiskGuest, build, create_image
from tests.guests.disk_check import acknowledged, assert_image
from tests.guests.disk_console import DiskConsole

_SIZE_BYTES = 16 << 20
_VERSIONS = [pytest.param(version, marks=pytest.mark.qemu(version)) for version in ("7.2", "10.0")]
_MACHINES = ["pc-q35-7.2", "pc-i440fx-7.2"]
_BUSY = Area(slot_count=64, slot_bytes=4608, first_byte=512, write_mib_s=4.0)


@dataclass(frozen=True, slots=True)
class _Running:
    qemu: raw.RawQemu
    console: DiskConsole
    image: Path

    async def end(self) -> None:
        """Let the guest finish and power off."""
        await self.qemu.qmp.execute("system_powerdown")
        await self.qemu.qmp.wait_event("SHUTDOWN", timeout_s=20)
        await self.console.wait_quiet()

    def assert_image(self, image: Path, *, is_final: bool = True) -> None:
        assert_image(image, acknowledged(self.console.last(1), _BUSY, is_final=is_final))


@asynccontextmanager
async def _running(directory: Path, version: str, *, machine: str = "pc-q35-7.2", faults: str = "") -> AsyncIterator[_Running]:
    """Start a guest that boots from one disk and writes to another one, node `d0`, behind a root port where there are such."""
    guest = DiskGuest(areas=(LEFT_ALONE, _BUSY))
    image = create_image(directory / "d0.qcow2", _SIZE_BYTES)
    is_express = "q35" in machine
    file = f"file.driver=blkdebug,{faults},file.image.driver=file,file.image" if faults else "file.driver=file,file"
    # fmt: off
    options = (
        "-machine", machine,
        "-accel", "tcg",
        "-cpu", "qemu64",
        "-m", f"{guest.memory_kib}k",
        "-chardev", f"file,id=console,path={directory / 'console.log'},append=on",
        "-serial", "chardev:console",
        "-blockdev", f"driver=raw,node-name=boot,file.driver=file,file.filename={build(guest, directory)}",
        "-device", "virtio-blk-pci,drive=boot,bootindex=1,addr=0x5",
        *(("-device", "pcie-root-port,id=root1,chassis=1,addr=0x6") if is_express else ()),
        "-blockdev", f"driver=qcow2,node-name=d0,discard=unmap,{file}.filename={image}",
        "-device", f"virtio-blk-pci,id=disk1,drive=d0,rerror=report,werror=report,{'bus=root1' if is_express else 'addr=0x6'}",
    )
    # fmt: on
    with DiskConsole(directory / "console.log", may_fail=bool(faults)) as console:
        async with raw.start(raw.Guest(options, skip_without(version)), directory / "qemu") as qemu:
            await console.wait_ticks()
            yield _Running(qemu, console, image)


@pytest.mark.parametrize("machine", _MACHINES)
@pytest.mark.parametrize("version", _VERSIONS)
async def test_what_the_guest_wrote_is_in_its_image(version: str, machine: str, tmp_path: Path) -> None:
    async with _running(tmp_path, version, machine=machine) as running:
        await running.console.wait_written(500, disk=1)
        await running.console.wait_disk_sweeps(2, disk=1)
        await running.end()

        last = running.console.last(1)
        assert last.issued == last.wrote == last.flushed
        assert running.console.latencies(1).write_count == last.wrote
        running.console.assert_continuous()

    running.assert_image(running.image)


@pytest.mark.parametrize("version", _VERSIONS)
async def test_a_mirror_that_was_settled_has_every_acknowledged_write_and_one_that_was_not_lacks_some(
    version: str, tmp_path: Path
) -> None:
    copy = create_image(tmp_path / "copy.qcow2", _SIZE_BYTES)
    async with _running(tmp_path, version) as running:
        qmp = running.qemu.qmp
        await _add_copy(running, copy)
        await qmp.execute("blockdev-mirror", {**_MIRROR, "sync": "full", "copy-mode": "write-blocking"})
        await qmp.wait_event("BLOCK_JOB_READY")
        await running.console.wait_written(200, disk=1)
        await qmp.execute("stop")
        await qmp.execute("block-job-cancel", {"device": "mirror"})
        await qmp.wait_event("BLOCK_JOB_COMPLETED")
        await qmp.execute("blockdev-del", {"node-name": "copy"})
        await _has_stopped(running)

        running.assert_image(copy, is_final=False)
        await qmp.execute("cont")
        await running.console.wait_written(200, disk=1)
        await running.end()

        running.console.assert_continuous()

    running.assert_image(running.image)
    with pytest.raises(AssertionError, match="sectors are wrong"):
        running.assert_image(copy, is_final=False)


@pytest.mark.qemu("7.2")
async def test_the_guest_itself_finds_a_disk_that_was_put_back_in_time(tmp_path: Path) -> None:
    """A pivot onto a copy that was not settled is what a lost write looks like to a guest."""
    copy = create_image(tmp_path / "copy.qcow2", _SIZE_BYTES)
    async with _running(tmp_path, "7.2") as running:
        qmp = running.qemu.qmp
        await running.console.wait_written(200, disk=1)
        await _add_copy(running, copy)
        await qmp.execute("blockdev-mirror", {**_MIRROR, "sync": "none"})  # brings only what is written from now on
        await qmp.wait_event("BLOCK_JOB_READY")
        await qmp.execute("job-complete", {"id": "mirror"})
        await qmp.wait_event("BLOCK_JOB_COMPLETED")
        await running.console.wait_disk_sweeps(2, disk=1)

        with pytest.raises(AssertionError, match="BAD disk 1 slot"):
            running.console.assert_continuous()


@pytest.mark.qemu("7.2")
async def test_errors_are_told_and_the_writes_tried_again(tmp_path: Path) -> None:
    faults = "file.inject-error.0.event=write_aio,file.inject-error.0.once=on,file.inject-error.0.errno=5"
    async with _running(tmp_path, "7.2", faults=faults) as running:
        await running.console.wait_written(200, disk=1)
        await running.end()

        assert running.console.last(1).error_count >= 1  # writes that wait for one cluster fail together
        running.console.assert_continuous()

    running.assert_image(running.image)


@pytest.mark.qemu("7.2")
async def test_a_disk_that_stands_still_shows_while_the_guest_goes_on(tmp_path: Path) -> None:
    async with _running(tmp_path, "7.2") as running:
        qmp = running.qemu.qmp
        await running.console.wait_written(100, disk=1)
        limits = {"iops": 1, "iops_rd": 0, "iops_wr": 0, "bps": 0, "bps_rd": 0, "bps_wr": 0}
        await qmp.execute("block_set_io_throttle", {"id": "/machine/peripheral/disk1/virtio-backend", **limits})
        since = running.console.last(1)
        while running.console.last(1).slowest_us < 1_500_000:
            await running.console.wait_ticks()

        assert running.console.max_write_gap_s(1, since.arrived_at_s) > 0.5
        assert running.console.max_gap_s(since.arrived_at_s) < running.console.max_write_gap_s(1, since.arrived_at_s)
        running.console.assert_continuous()


_MIRROR = {
    "job-id": "mirror",
    "device": "d0",
    "target": "copy",
    "auto-dismiss": True,
}


async def _add_copy(running: _Running, copy: Path) -> None:
    file = {"driver": "file", "filename": str(copy)}
    await running.qemu.qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": "copy", "file": file})


async def _has_stopped(running: _Running) -> None:
    """Wait until the guest's last words have been read."""
    count = -1
    while count != len(running.console.lines(1)):
        count = len(running.console.lines(1))
        await asyncio.sleep(0.05)
