"""The first part of a job: the file and the nodes that it needs, then QEMU's job itself. Whatever fails, `ending` undoes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent.blockjobs import images
from agent.blockjobs.access import reopen
from agent.blockjobs.block_job import Kind, Wish
from agent.blockjobs.definitions import known_images, open_like
from agent.qemu.block_commands import Sync
from agent.qemu.block_status import JobStatus
from agent.qemu.errors import QemuRefused
from common.errors import Bug, Expired, WrongState

if TYPE_CHECKING:
    from agent.blockjobs.block_job import BlockJobRecord
    from agent.blockjobs.chain import Chain
    from agent.blockjobs.work import Work
    from agent.qemu.block_commands import BlockCommands
    from agent.vm.definition import Disk

CREATE_TIMEOUT_S: Final = 60.0
_ASK_INTERVAL_S: Final = 0.01
# Small writes of the guest are copied as they are: QEMU's own 64 KiB make 123 MiB of 8 MiB. The map of the largest takes 32 MiB.
_PIECE_BYTES: Final = 4096
_MOST_IN_PIECES_BYTES: Final = 1 << 40
_log = structlog.get_logger()


async def begin(work: Work, commands: BlockCommands, disk: Disk, chain: Chain) -> None:
    """Begin what is on record.

    Raises:
        FerryError, OSError: it cannot be begun; there may be a file and nodes.
    """
    record = work.record
    bound = record.bandwidth_bytes_per_second
    match record.kind:
        case Kind.COPY:
            await _open_new(work, commands, disk, chain, overlays=False)
            sync = Sync.TOP if len(record.after) > 1 else Sync.FULL
            replaced = chain.top.node if chain.filters else ""
            await commands.mirror(
                record.qemu_id,
                chain.root,
                record.qemu_id,
                sync,
                bytes_per_second=bound,
                replaces=replaced,
                is_write_blocking=False,  # QEMU does not survive the abort of another one
                granularity_bytes=_PIECE_BYTES if chain.top.virtual_size_bytes <= _MOST_IN_PIECES_BYTES else 0,
            )
        case Kind.SNAPSHOT:
            await _open_new(work, commands, disk, chain, overlays=True)
            work.note(replace(work.record, wish=Wish.PIVOT))
            await commands.snapshot(chain.top.node, record.qemu_id)
            await _close_for_writing(work, commands, chain.top.node)
        case Kind.PULL:
            below = record.after[1].node if record.file else ""
            await commands.stream(record.qemu_id, chain.top.node, below, bytes_per_second=bound)
        case Kind.COMMIT | Kind.ACTIVE_COMMIT:
            base = record.paths.index(record.file)
            top = len(record.after) - (len(record.before) - base)
            await _open_for_writing(work, commands, record.before[base].node)
            if top > 1:  # what stands on the images that go names the base from then on; QEMU ends if it cannot write that
                await _open_for_writing(work, commands, record.before[top - 1].node)
            nodes = (chain.root, record.before[top].node, record.before[base].node)
            await commands.commit(record.qemu_id, *nodes, bytes_per_second=bound)


async def _open_for_writing(work: Work, commands: BlockCommands, node: str) -> None:
    is_known = await reopen(commands, work.vm.get_running().definition, node, is_read_only=False)
    if not is_known and not node.startswith("#"):  # those QEMU opens for writing by itself
        raise WrongState(
            f"{work.record.named()}: block node {node} is in no option of the VM, so it cannot be opened for writing",
            reason="DISK_NOT_CARRIED",
        )


async def _close_for_writing(work: Work, commands: BlockCommands, node: str) -> None:
    """Let others stand on the image too; that it stays open for writing harms nobody else."""
    try:
        await reopen(commands, work.vm.get_running().definition, node, is_read_only=True)
    except QemuRefused as error:
        _log.warning("image stays open for writing", vm=work.record.vm_name, node=node, error=error.text)


async def _open_new(work: Work, commands: BlockCommands, disk: Disk, chain: Chain, *, overlays: bool) -> None:
    """Make the file of a record unless there is one, and open it; an overlay gets what it stands on later."""
    if work.record.made is not None:
        await asyncio.to_thread(_check_writable, work.record.made)
        made = images.make(work.record.made, Path(chain.top.path), work.vm.directory.guests)
        work.note(replace(work.record, made=made))
        images.put_in_place(made)
    record = work.record
    new = record.after[0]
    _, known = known_images(work.vm.get_running().definition, disk)
    is_device = images.is_device(new.path)
    storage, data = open_like(known[0], new.node, new.file_node, new.format, new.path, is_device=is_device)
    size_bytes = chain.top.virtual_size_bytes
    if record.made is not None and new.format == "raw":
        os.truncate(new.path, size_bytes)
    await commands.add_node(storage.properties)
    if record.made is not None and new.format != "raw":
        await _create(record, commands, _image_options(record, chain, size_bytes))
    below = chain.layers[1].node if len(record.after) > 1 and not overlays else None
    await commands.add_node(data.properties | ({} if new.format == "raw" else {"backing": below}))


def _image_options(record: BlockJobRecord, chain: Chain, size_bytes: int) -> dict[str, object]:
    """Describe an empty image like the disk's own. Source: qapi/block-core.json, BlockdevCreateOptionsQcow2."""
    new = record.after[0]
    options: dict[str, object] = {"driver": new.format, "file": new.file_node, "size": size_bytes}
    if chain.top.format == new.format and chain.top.cluster_size_bytes:
        options["cluster-size"] = chain.top.cluster_size_bytes
    if len(record.after) > 1:
        below = record.after[1]
        options |= {"backing-file": below.path, "backing-fmt": "raw" if below.format in ("file", "host_device") else below.format}
    return options


async def _create(record: BlockJobRecord, commands: BlockCommands, options: dict[str, object]) -> None:
    job_id = creation_id(record)
    await commands.create_image(job_id, options)
    try:
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            while True:
                job = next((job for job in await commands.query_jobs() if job.id == job_id), None)
                if job is None:
                    raise Bug(f"job {job_id} has been dismissed by somebody else")
                if job.status is JobStatus.CONCLUDED:
                    break
                await asyncio.sleep(_ASK_INTERVAL_S)
    except TimeoutError as error:
        raise Expired(f"{record.file}: no image was made in {CREATE_TIMEOUT_S:.0f} s") from error
    await commands.dismiss_job(job_id)
    if job.error:
        raise WrongState(f"{record.file}: no image can be made: {job.error}", reason="IMAGE_NOT_MADE", path=record.file)


def creation_id(record: BlockJobRecord) -> str:
    """Name QEMU's job that writes an empty image."""
    return f"{record.qemu_id}-c"


def _check_writable(made: images.MadeFile) -> None:
    directory = Path(made.path).parent
    if not os.access(directory, os.W_OK):
        raise WrongState(f"{made.path}: no file can be made in {directory}", reason="FILE_NOT_ACCESSIBLE", path=made.path)
