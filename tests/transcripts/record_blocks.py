"""What a real QEMU answers about disks, jobs on them, and exports; part of `tests.transcripts.record`.

A guest without a kernel has a disk `vda` on a chain top -> mid -> base, a raw disk `vdb`, and an empty CD drive; a second
QEMU exports an image over NBD. Every status of a job is held for as long as it is asked.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.qemu.binary import short_lived
from tests.contract.real import MACHINE, MEMORY_KIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from agent.qemu.commands import Qemu
    from tests.transcripts.record import Recorder

TIMEOUT_S = 10.0
POLL_S = 0.002
SIZE_BYTES = 4 << 20
SLOW_BYTES_PER_S = 1
JOB = "job"
QCOW2_OPTIONS = "compat=1.1,cluster_size=65536,lazy_refcounts=off"


async def record_blocks(recorder: Recorder) -> None:
    """Record all of it."""
    await record_drives(recorder)
    await record_mirror(recorder)
    await record_ends(recorder)
    await record_chain_jobs(recorder)
    await record_refusals(recorder)


async def record_drives(recorder: Recorder) -> None:
    """Record drives of many kinds, with no job."""
    async with guest(recorder) as (qemu, directory):
        await recorder.keep(qemu, "query-block.plain", "query-block")
        for command in ("query-jobs", "query-block-jobs", "query-block-exports", "query-yank"):
            await recorder.keep(qemu, f"{command}.none", command)
        await _execute(qemu, "blockdev-snapshot-sync", {**_overlay(directory), "node-name": "top", "snapshot-node-name": "over"})
        await recorder.keep(qemu, "query-block.overlay", "query-block")


async def record_mirror(recorder: Recorder) -> None:
    """Record a mirror over NBD in every status, to its good end, and the exporting side."""
    async with guest(recorder) as (source, directory), exporting(recorder, directory) as destination:
        await recorder.keep(destination, "query-block-exports.idle", "query-block-exports")
        await _execute(source, "blockdev-add", _nbd(directory))
        await recorder.keep(source, "query-yank.nbd", "query-yank")
        await recorder.keep(destination, "query-block-exports.connected", "query-block-exports")
        await _execute(source, "blockdev-mirror", _mirror(speed=SLOW_BYTES_PER_S))
        await keep_job(recorder, source, "running")
        await recorder.keep(source, "query-block.mirrored", "query-block")
        await _execute(source, "job-pause", {"id": JOB})
        await keep_job(recorder, source, "paused")
        await _execute(source, "job-resume", {"id": JOB})
        await _execute(source, "block-job-set-speed", {"device": JOB, "speed": 0})
        await keep_job(recorder, source, "ready")
        await _execute(source, "job-pause", {"id": JOB})
        await keep_job(recorder, source, "standby")
        await _execute(source, "job-resume", {"id": JOB})
        await reach(source, "ready")
        await _execute(source, "block-job-cancel", {"device": JOB})
        await keep_job(recorder, source, "concluded")
        await _execute(source, "job-dismiss", {"id": JOB})
        await _execute(source, "blockdev-del", {"node-name": "target"})
        await _execute(destination, "nbd-server-stop")


async def record_ends(recorder: Recorder) -> None:
    """Record mirrors that are cancelled, that fail, that stand still for an error, and that pivot."""
    async with guest(recorder) as (source, directory), exporting(recorder, directory) as destination:
        await _execute(source, "blockdev-add", _nbd(directory))
        await _execute(source, "blockdev-mirror", _mirror(speed=SLOW_BYTES_PER_S))
        await _execute(source, "job-cancel", {"id": JOB})
        await keep_job(recorder, source, "concluded", "cancelled")
        await _execute(source, "job-dismiss", {"id": JOB})
        await _execute(source, "blockdev-mirror", _mirror(speed=SLOW_BYTES_PER_S))
        await _execute(destination, "nbd-server-stop")
        await _execute(source, "block-job-set-speed", {"device": JOB, "speed": 0})
        await keep_job(recorder, source, "concluded", "failed")
        await _execute(source, "job-dismiss", {"id": JOB})

        await _execute(source, "blockdev-add", _failing(directory, "full", "ENOSPC"))
        await _execute(source, "blockdev-mirror", {**_mirror(target="full"), "on-target-error": "stop"})
        await keep_job(recorder, source, "paused", "nospace")
        await _execute(source, "job-cancel", {"id": JOB})
        await reach(source, "concluded")
        await _execute(source, "job-dismiss", {"id": JOB})
        await _execute(source, "blockdev-mirror", {**_mirror(target="full"), "on-target-error": "report"})
        await keep_job(recorder, source, "concluded", "nospace")
        await _execute(source, "job-dismiss", {"id": JOB})

        await _execute(source, "blockdev-add", _plain(directory / "copy.qcow2", "copy"))
        await _execute(source, "blockdev-mirror", _mirror(target="copy"))
        await reach(source, "ready")
        await _execute(source, "job-complete", {"id": JOB})
        await keep_job(recorder, source, "concluded", "pivoted")
        await _execute(source, "job-dismiss", {"id": JOB})
        await recorder.keep(source, "query-block.pivoted", "query-block")


async def record_chain_jobs(recorder: Recorder) -> None:
    """Record stream, commit and active commit."""
    async with guest(recorder) as (qemu, _):
        stream = {"job-id": JOB, "device": "top", "base-node": "base", "auto-dismiss": False, "auto-finalize": False}
        await _execute(qemu, "block-stream", {**stream, "speed": SLOW_BYTES_PER_S})
        await keep_job(recorder, qemu, "running", "stream")
        await _execute(qemu, "block-job-set-speed", {"device": JOB, "speed": 0})
        await keep_job(recorder, qemu, "pending", "stream")
        await _execute(qemu, "job-finalize", {"id": JOB})
        await keep_job(recorder, qemu, "concluded", "stream")
        await _execute(qemu, "job-dismiss", {"id": JOB})
        await recorder.keep(qemu, "query-block.streamed", "query-block")
    async with guest(recorder) as (qemu, _):
        commit = {"job-id": JOB, "device": "top", "base-node": "base", "auto-dismiss": False}
        await _execute(qemu, "block-commit", {**commit, "top-node": "mid", "speed": SLOW_BYTES_PER_S})
        await keep_job(recorder, qemu, "running", "commit")
        await _execute(qemu, "block-job-set-speed", {"device": JOB, "speed": 0})
        await keep_job(recorder, qemu, "concluded", "commit")
        await _execute(qemu, "job-dismiss", {"id": JOB})
        await recorder.keep(qemu, "query-block.committed", "query-block")
        await _execute(qemu, "block-commit", commit)
        await keep_job(recorder, qemu, "ready", "active-commit")
        await recorder.keep(qemu, "query-block.committing", "query-block")
        await _execute(qemu, "job-complete", {"id": JOB})
        await reach(qemu, "concluded")
        await recorder.keep(qemu, "query-block.active-committed", "query-block")


async def record_refusals(recorder: Recorder) -> None:
    """Record what QEMU says no to."""
    async with guest(recorder) as (source, directory), exporting(recorder, directory) as destination:
        again = {"addr": {"type": "unix", "data": {"path": str(directory / "again")}}}
        await recorder.keep(destination, "error.server-again", "nbd-server-start", again)
        await recorder.keep(source, "error.stop-without-server", "nbd-server-stop")
        await recorder.keep(destination, "error.export-again", "block-export-add", _export("export"))
        await _execute(source, "blockdev-add", _nbd(directory))
        await recorder.keep(source, "error.node-again", "blockdev-add", _nbd(directory))
        unknown = {**_nbd(directory), "node-name": "other", "export": "none"}
        await recorder.keep(source, "error.unknown-export", "blockdev-add", unknown)
        await _execute(source, "blockdev-mirror", _mirror(speed=SLOW_BYTES_PER_S))
        await _execute(source, "blockdev-add", _plain(directory / "copy.qcow2", "copy"))
        await recorder.keep(source, "error.job-again", "blockdev-mirror", {**_mirror(target="copy"), "device": "raw"})
        second = {**_mirror(target="copy"), "job-id": "second"}
        await recorder.keep(source, "error.second-mirror", "blockdev-mirror", second)
        stream = {"job-id": "second", "device": "top"}
        await recorder.keep(source, "error.stream-of-mirrored", "block-stream", stream)
        await recorder.keep(source, "error.node-busy", "blockdev-del", {"node-name": "target"})
        await recorder.keep(source, "error.complete-running", "job-complete", {"id": JOB})
        await recorder.keep(source, "error.dismiss-running", "job-dismiss", {"id": JOB})
        await recorder.keep(source, "error.no-such-job", "job-cancel", {"id": "none"})
        await recorder.keep(source, "error.no-such-block-job", "block-job-cancel", {"device": "none"})
        await recorder.keep(source, "error.no-such-node", "blockdev-del", {"node-name": "none"})
        await _execute(source, "job-cancel", {"id": JOB})
        await reach(source, "concluded")
        await recorder.keep(source, "error.cancel-concluded", "job-cancel", {"id": JOB})


async def keep_job(recorder: Recorder, qemu: Qemu, status: str, name: str = "") -> None:
    """Wait until the job has a status, and keep what both queries say of it."""
    await reach(qemu, status)
    suffix = f"{status}-{name}" if name else status
    for command in ("query-jobs", "query-block-jobs"):
        await recorder.keep(qemu, f"{command}.{suffix}", command)


async def reach(qemu: Qemu, status: str) -> None:
    """Wait until the job has a status."""
    async with asyncio.timeout(TIMEOUT_S):
        while status not in {str(job["status"]) for job in await _jobs(qemu)}:  # noqa: ASYNC110  (QEMU is polled)
            await asyncio.sleep(POLL_S)


async def _jobs(qemu: Qemu) -> list[dict[str, object]]:
    reply = await qemu.monitor.execute("query-jobs")
    assert isinstance(reply, list)
    return reply


@asynccontextmanager
async def guest(recorder: Recorder) -> AsyncIterator[tuple[Qemu, Path]]:
    """Run a guest with disks, and give the directory that they are in."""
    with tempfile.TemporaryDirectory(prefix="ferry-record-") as name:
        directory = Path(name)
        _create_chain(directory)
        # fmt: off
        argv = [
            str(recorder.binary),
            "-machine", f"{MACHINE},accel=tcg",
            "-m", f"{MEMORY_KIB}k",
            "-blockdev", f"driver=qcow2,node-name=base,file.driver=file,file.filename={directory}/base.qcow2",
            "-blockdev", f"driver=qcow2,node-name=mid,file.driver=file,file.filename={directory}/mid.qcow2,backing=base",
            "-blockdev", f"driver=qcow2,node-name=top,file.driver=file,file.filename={directory}/top.qcow2,backing=mid",
            "-device", "virtio-blk-pci,id=virtio-disk0,drive=top",
            "-blockdev", f"driver=raw,node-name=raw,read-only=on,file.driver=file,file.filename={directory}/data.raw",
            "-device", "virtio-blk-pci,id=virtio-disk1,drive=raw",
            "-device", "ide-cd,id=sata0-0-0",
        ]
        # fmt: on
        async with short_lived(argv) as qemu:
            await qemu.cont()
            yield qemu, directory


@asynccontextmanager
async def exporting(recorder: Recorder, directory: Path) -> AsyncIterator[Qemu]:
    """Run a destination that exports `target.qcow2` on a UNIX socket."""
    argv = [str(recorder.binary), "-machine", f"{MACHINE},accel=tcg", "-m", f"{MEMORY_KIB}k"]
    async with short_lived(argv) as qemu:
        server = {"type": "unix", "data": {"path": str(directory / "nbd")}}
        await _execute(qemu, "blockdev-add", _plain(directory / "target.qcow2", "image"))
        await _execute(qemu, "nbd-server-start", {"addr": server, "max-connections": 16})
        await _execute(qemu, "block-export-add", _export("export"))
        yield qemu


def _create_chain(directory: Path) -> None:
    _create(directory / "base.qcow2")
    _write(directory / "base.qcow2", 0)
    _create(directory / "mid.qcow2", backing=directory / "base.qcow2")
    _write(directory / "mid.qcow2", 1)
    _create(directory / "top.qcow2", backing=directory / "mid.qcow2")
    _write(directory / "top.qcow2", 2)
    for name in ("target", "full", "copy"):
        _create(directory / f"{name}.qcow2")
    (directory / "data.raw").write_bytes(bytes(SIZE_BYTES))


def _create(path: Path, *, backing: Path | None = None) -> None:
    options = QCOW2_OPTIONS + (f",backing_file={backing},backing_fmt=qcow2" if backing else "")
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE_BYTES))


def _write(path: Path, mib: int) -> None:
    _run("qemu-io", "-c", f"write -q -P 7 {mib}M 1M", path)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


async def _execute(qemu: Qemu, command: str, arguments: Mapping[str, object] | None = None) -> None:
    await qemu.monitor.execute(command, arguments)


def _mirror(*, target: str = "target", speed: int = 0) -> dict[str, object]:
    return {
        "job-id": JOB,
        "device": "top",
        "target": target,
        "sync": "full",
        "copy-mode": "write-blocking",
        "speed": speed,
        "auto-dismiss": False,
        "on-source-error": "report",
        "on-target-error": "report",
    }


def _nbd(directory: Path) -> dict[str, object]:
    server = {"type": "unix", "path": str(directory / "nbd")}
    return {"driver": "nbd", "node-name": "target", "server": server, "export": "d0", "open-timeout": 1}


def _export(identifier: str) -> dict[str, object]:
    return {"type": "nbd", "id": identifier, "node-name": "image", "name": "d0", "writable": True}


def _plain(path: Path, node: str) -> dict[str, object]:
    return {"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": str(path)}}


def _failing(directory: Path, node: str, error: str) -> dict[str, object]:
    rule = {"event": "write_aio", "errno": {"EIO": 5, "ENOSPC": 28}[error], "once": False, "immediately": False}
    image = {"driver": "file", "filename": str(directory / f"{node}.qcow2")}
    return {
        "driver": "qcow2",
        "node-name": node,
        "file": {"driver": "blkdebug", "image": image, "inject-error": [rule]},
    }


def _overlay(directory: Path) -> dict[str, object]:
    return {"snapshot-file": str(directory / "over.qcow2"), "format": "qcow2"}
