"""Writing a guest's memory into a file for a debugger. The guest stands still meanwhile; QEMU cannot be asked to stop doing it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from agent.qemu.completion import wait_end
from agent.qemu.errors import QemuSilent
from agent.qemu.files import DUMP_ACTIVE, DUMP_FAILED, dump_formats, pass_fd, query_dump, release_fds, start_dump
from agent.qemu.status import RunState
from agent.qemu.subscription import Event
from agent.saving import part
from agent.saving.transfer import SETTLE_POLL_S, SETTLE_TIMEOUT_S, TransferFailed
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.commands import Qemu
    from agent.qemu.subscription import Subscription
    from agent.saving.work import Work

DEFAULT_FORMAT = "elf"


async def check_format(qemu: Qemu, file_format: str) -> None:
    """Require that QEMU can dump in a format.

    Raises:
        InvalidRequest: it cannot; the text has those that it can.
    """
    known = await dump_formats(qemu)
    if file_format not in known:
        raise InvalidRequest(
            f"dump format {file_format[:40]!r}: this QEMU knows {', '.join(known)}",
            reason="DUMP_FORMAT_UNKNOWN",
            format=file_format,
        )


async def dump(qemu: Qemu, work: Work, path: Path, file_format: str) -> None:
    """Dump the guest's memory; on return the guest is as it was.

    Raises:
        FerryError, OSError: it failed; the caller removes what was written, the guest is as it was.
    """
    written = part.part_path(path, work.job.id)
    work.at_step("writing")
    with part.create(written) as file, qemu.monitor.subscribe() as notices:
        await start_dump(qemu, await pass_fd(qemu, file.fileno()), file_format)
        status = await wait_dumped(qemu, work)
        if status == DUMP_FAILED:
            await release_fds(qemu)
            raise TransferFailed(f"QEMU could not write {path}: {await _find_error(notices)}")
        await asyncio.to_thread(os.fsync, file.fileno())
    part.commit(written, path)


async def wait_dumped(qemu: Qemu, work: Work) -> str:
    """Wait until QEMU is done and has left `save-vm`, a moment after it tells the end; return its word for the end."""

    async def look() -> str | None:
        try:
            status, done_bytes, total_bytes = await query_dump(qemu)
        except QemuSilent:  # a slow disk
            return None
        work.progress(done_bytes, total_bytes)
        return status if status != DUMP_ACTIVE else None

    status = await wait_end(qemu, look, wish=work.cancel_wished)
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while await qemu.query_status() is RunState.SAVE_VM:  # noqa: ASYNC110 -- QEMU tells no event
            await asyncio.sleep(SETTLE_POLL_S)
    return status


async def _find_error(notices: Subscription) -> str:
    """Find QEMU's own words, which only the event has. Source: qapi/dump.json, DUMP_COMPLETED."""
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        async for notice in notices:
            if isinstance(notice, Event) and notice.name == "DUMP_COMPLETED":
                return str(notice.data.get("error", "no reason given"))
    return "QEMU has ended"
