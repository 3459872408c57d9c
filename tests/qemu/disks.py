"""VMs with disks on chains of images, and an agent that works on them, for tests on a real QEMU."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from agent.blockjobs.block_job import BlockJob, State
from agent.blockjobs.block_jobs import BlockJobs
from agent.blockjobs.disks import commands_of, find_drive
from agent.qemu.block_graph import Graph
from agent.store import Store
from agent.vm.lifecycle import Vms
from agent.vm.probes import HostProbes
from agent.vm.settings import VmSettings
from agent.vm.vm import Vm
from common.tasks import OwnedTasks
from tests.binaries import BINARIES, MOSTLY_OLDER
from tests.qemu.vms import stop_all

UUID_1 = UUID("61111111-0000-0000-0000-000000000001")
MIB = 1 << 20
TIMEOUT_S = 30.0
both = pytest.mark.parametrize("version", MOSTLY_OLDER)
mostly_old = pytest.mark.parametrize("version", ["7.2", pytest.param("10.0", marks=pytest.mark.matrix)])
mostly_new = pytest.mark.parametrize("version", ["10.0", pytest.param("7.2", marks=pytest.mark.matrix)])
SIZE_MIB = 8


def image(path: Path, *, on: Path | None = None, size_mib: int = SIZE_MIB, image_format: str = "qcow2") -> Path:
    words = ["-b", str(on), "-F", "qcow2"] if on is not None else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", image_format, *words, str(path), *([] if on else [f"{size_mib}M"])], check=True
    )
    return path


def fill(path: Path, pattern: int, offset_kib: int, kib: int, image_format: str = "qcow2") -> None:
    command = f"write -P {pattern} {offset_kib}k {kib}k"
    subprocess.run(["qemu-io", "-f", image_format, "-c", command, str(path)], check=True, stdout=subprocess.DEVNULL)


def make_chain(directory: Path, *names: str) -> list[Path]:
    """Make images that stand on one another, the lowest first, each with a pattern of its own in its own place."""
    paths: list[Path] = []
    for index, name in enumerate(names):
        path = image(directory / name, on=paths[-1] if paths else None)
        fill(path, index + 1, index * 256, 128)
        paths.append(path)
    return paths


def disk_xml(path: Path, target: str = "vda", *, image_format: str = "qcow2", inside: str = "", driver: str = "") -> str:
    return (
        f"<disk type='file'><driver name='qemu' type='{image_format}' {driver}/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/>{inside}</disk>"
    )


def domain(disks: str, *, uuid: UUID = UUID_1, name: str = "web") -> bytes:
    return f"""
        <domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory>16392</memory>
          <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
          <devices>{disks}</devices>
        </domain>""".encode()


class Agent:
    """What an agent has of VMs and the jobs on their disks."""

    def __init__(self, vms: Vms, jobs: BlockJobs) -> None:
        self.vms = vms
        self.jobs = jobs

    @property
    def vm(self) -> Vm:
        return self.vms.get("web")

    async def until(self, job: BlockJob, state: State) -> BlockJob:
        async with asyncio.timeout(TIMEOUT_S):
            async for seen in self.jobs.get(job.id, "").follow():
                if seen.state is state or seen.is_over:
                    assert seen.state is state, (seen.state, seen.error)
                    return seen
        raise AssertionError("it ended otherwise")

    async def done(self, job: BlockJob) -> BlockJob:
        return await self.until(job, State.COMPLETED)

    async def write(self, pattern: int, offset_kib: int, kib: int, target: str = "vda") -> None:
        """Write as the guest does, through its device."""
        disk = next(disk for disk in self.vm.get_running().definition.disks if disk.target == target)
        device = f"/machine/peripheral/{disk.device}/virtio-backend"
        said = await self.io(f'-d {device} "write -P {pattern} {offset_kib}k {kib}k"')
        assert "wrote" in said, said
        await self.io(f"-d {device} flush")

    async def read(self, pattern: int, offset_kib: int, kib: int, target: str = "vda") -> None:
        """Require that the guest sees a pattern."""
        disk = next(disk for disk in self.vm.get_running().definition.disks if disk.target == target)
        said = await self.io(f'-d /machine/peripheral/{disk.device}/virtio-backend "read -P {pattern} {offset_kib}k {kib}k"')
        assert "read " in said, said
        assert "ailed" not in said, said

    async def io(self, words: str) -> str:
        # qemu-io tells an error on QEMU's stderr, so what the monitor says may be empty
        log = self.vm.directory.log_path
        before = log.stat().st_size
        said = await self.vms.qemu(self.vm).monitor.execute("human-monitor-command", {"command-line": f"qemu-io {words}"})
        with log.open("rb") as file:
            file.seek(before)
            return f"{said}{file.read().decode()}"

    async def paths(self, target: str = "vda") -> list[str]:
        for seen in await self.jobs.see(self.vm):
            if seen.disk.target == target and seen.chain is not None:
                return [Path(path).name for path in seen.chain.paths]
        raise AssertionError("no such disk")

    async def graph(self) -> Graph:
        return await commands_of(self.vms, self.vm).query_graph()

    async def assert_clean(self, *, target: str = "vda") -> None:
        """Fail unless QEMU has no job, no node and no open file but those of the disks as they are."""
        commands = commands_of(self.vms, self.vm)
        assert await commands.query_jobs() == ()
        seen = await self.jobs.see(self.vm)
        wanted: set[str] = set()
        paths: set[str] = set()
        for one in seen:
            assert one.chain is not None
            assert not one.jobs
            paths |= set(one.chain.paths)
            wanted |= {*one.chain.filters, *(name for layer in one.chain.layers for name in (layer.node, layer.file_node))}
        graph = await commands.query_graph()
        assert set(graph.nodes) == wanted - {""}
        running = self.vm.get_running()
        assert running.process is not None
        assert _opened_images(running.process.pid) == paths
        drives = await commands.query_drives()
        for disk in running.definition.disks:
            drive = find_drive(drives, disk.device, disk.node)
            assert drive is not None
        assert self.jobs.all() == []
        assert self.vms.jobs.disk_locks(self.vm.uuid) == ()


def _opened_images(pid: int) -> set[str]:
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {path for path in opened if path.removesuffix(" (deleted)").endswith((".qcow2", ".raw", ".img"))}


@asynccontextmanager
async def agent(state_dir: Path, version: str = "7.2") -> AsyncIterator[Agent]:
    """Run it; leaving it leaves the QEMUs and their jobs, as the end of an agent does."""
    store = Store(state_dir)
    settings = VmSettings(qemu=str(BINARIES[version]), emulators=tuple(str(path) for path in BINARIES.values()))
    async with Vms(store, settings, HostProbes(store.cache_dir)) as vms, OwnedTasks() as tasks:
        jobs = BlockJobs(vms, store, tasks)
        jobs.resume()
        yield Agent(vms, jobs)


@asynccontextmanager
async def guest(place: Path, version: str, disks: str) -> AsyncIterator[Agent]:
    """Define and start a guest with these disks; at the end every QEMU is ended."""
    async with agent(place / "s", version) as one:
        vm = await one.vms.define(domain(disks), "web.xml")
        await one.vms.start(vm)
        try:
            yield one
        finally:
            await stop_all(one.vms)


@contextmanager
def small_disk(place: Path, size_mib: int) -> Iterator[Path]:
    """Mount a file system of this size."""
    directory = place / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "ferry-test", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
