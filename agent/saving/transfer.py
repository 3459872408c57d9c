"""Moving a guest between QEMU and a file with QEMU's own migration."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from agent.qemu.completion import wait_end
from agent.qemu.endings import of_status
from agent.qemu.errors import QemuRefused, QemuSilent
from agent.qemu.files import pass_fd, pass_seekable_fd, release_fds
from agent.qemu.status import MigrationStatus, RunState
from agent.saving.save_file import CONTENTS_OFFSET
from common.errors import WrongState

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.commands import Qemu
    from agent.qemu.status import MigrationReport
    from agent.saving.work import Work

NO_BOUND_BYTES_PER_SECOND: Final = 1 << 40
MAPPED_RAM: Final = "mapped-ram"
SETTLE_TIMEOUT_S: Final = 10.0
SETTLE_POLL_S: Final = 0.02


class TransferFailed(WrongState):
    """QEMU has not moved the guest."""

    default_reason = "QEMU_FAILED"


async def prepare(qemu: Qemu, *, is_mapped_ram: bool, bandwidth_bytes_per_second: int = 0) -> bool:
    """Turn off what earlier migrations have turned on: with return-path or pause-before-switchover a file is never complete.

    Returns:
        Whether this QEMU writes and reads files by `file:`, as it does since 9.0, with mapped-ram; until 11.1 it does by `fd:` too.
    """
    wanted = {"events", MAPPED_RAM} if is_mapped_ram else {"events"}
    known = await qemu.query_capabilities()
    await qemu.set_capabilities({name: name in wanted for name in known})
    await qemu.set_parameters({"max-bandwidth": bandwidth_bytes_per_second or NO_BOUND_BYTES_PER_SECOND, "tls-creds": ""})
    return MAPPED_RAM in known


async def write_guest(qemu: Qemu, work: Work, file: BinaryIO, part: Path, *, is_mapped_ram: bool) -> None:
    """Let QEMU write a stopped guest to the file, from `CONTENTS_OFFSET` on.

    Raises:
        Cancelled: by wish; QEMU has given up.
        TransferFailed: with QEMU's own words.
    """
    if await prepare(qemu, is_mapped_ram=is_mapped_ram, bandwidth_bytes_per_second=work.job.bandwidth_bytes_per_second):
        write_only = os.open(part, os.O_WRONLY | os.O_CLOEXEC)
        try:
            uri = await pass_seekable_fd(qemu, write_only, CONTENTS_OFFSET)
        finally:
            os.close(write_only)
    else:
        file.seek(CONTENTS_OFFSET)
        uri = await pass_fd(qemu, file.fileno())
    await qemu.migrate(uri)
    report = await wait_final(qemu, work)
    work.check_wanted()
    if report.status is not MigrationStatus.COMPLETED:
        raise TransferFailed(f"QEMU could not write {work.job.path}: {_words(report)}")


async def read_guest(qemu: Qemu, work: Work, file: BinaryIO, *, is_mapped_ram: bool) -> None:
    """Let a waiting QEMU read the guest; on return it is complete and stands still.

    Raises:
        Cancelled: by wish; QEMU is to be ended.
        TransferFailed: with QEMU's own words.
    """
    if await prepare(qemu, is_mapped_ram=is_mapped_ram):
        uri = await pass_seekable_fd(qemu, file.fileno(), CONTENTS_OFFSET)
    else:
        os.lseek(file.fileno(), CONTENTS_OFFSET, os.SEEK_SET)
        uri = await pass_fd(qemu, file.fileno())
    await qemu.migrate_incoming(uri)

    async def look() -> MigrationReport | None:
        report = await _ask(qemu)
        work.check_wanted()
        work.progress(os.lseek(file.fileno(), 0, os.SEEK_CUR) - CONTENTS_OFFSET, work.job.total_bytes)
        return report if report is not None and report.status.is_final else None

    report = await wait_end(qemu, look, wish=work.cancel_wished)
    if report.status is not MigrationStatus.COMPLETED:
        raise TransferFailed(f"QEMU could not load {work.job.path}: {_words(report)}")
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while await qemu.query_status() is RunState.INMIGRATE:  # noqa: ASYNC110 -- QEMU tells no event
            await asyncio.sleep(SETTLE_POLL_S)
    await release_fds(qemu)


async def wait_final(qemu: Qemu, work: Work) -> MigrationReport:
    """Follow a guest on its way into a file until QEMU is done with it; once a cancel is wished QEMU is asked to give up."""
    is_told = False

    async def look() -> MigrationReport | None:
        nonlocal is_told
        report = await _ask(qemu)
        if report is not None:
            if report.ram is not None and report.ram.total_bytes:
                work.progress(report.ram.total_bytes - report.ram.remaining_bytes, report.ram.total_bytes)
            if of_status(report.status, "", what="") is not None:
                return report
        if work.cancel_wished.is_set() and not is_told:
            is_told = True
            await qemu.migrate_cancel()
        return None

    return await wait_end(qemu, look, wish=work.cancel_wished)


async def _ask(qemu: Qemu) -> MigrationReport | None:
    """Ask how far it is; a slow disk can keep QEMU from answering, which is no failure."""
    with suppress(QemuSilent):
        return await qemu.query_migrate()
    return None


async def run_on(qemu: Qemu) -> None:
    """Let the guest run; right after the end of a migration or dump QEMU refuses that for a moment.

    Raises:
        QemuRefused: it still does after `SETTLE_TIMEOUT_S`.
    """
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    while await qemu.query_status() is not RunState.RUNNING:
        try:
            await qemu.cont()
        except QemuRefused:
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(SETTLE_POLL_S)


async def stay_stopped(qemu: Qemu) -> None:
    """Bring a guest that stood still back to where `cont` is a user's to give.

    Once QEMU has sent all of it that takes a `cont` and a `stop`: the guest runs for some milliseconds.
    """
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while (state := await qemu.query_status()) is RunState.FINISH_MIGRATE:  # noqa: ASYNC110 -- QEMU tells no event
            await asyncio.sleep(SETTLE_POLL_S)
    if state is RunState.POSTMIGRATE:
        await run_on(qemu)
        await qemu.stop()


def _words(report: MigrationReport) -> str:
    ending = of_status(report.status, report.error_desc or "", what="its migration")
    return f"its migration is {report.status_text}" if ending is None else ending.text
