"""How far a save is by what its file takes: QEMU answers nothing while it writes the last of a guest.

That last may be all of a large one, where the storage takes it faster than the allowed downtime is long.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from agent.saving.save_file import CONTENTS_OFFSET

if TYPE_CHECKING:
    from agent.saving.work import Work

INTERVAL_S: Final = 0.25
_BLOCK_BYTES: Final = 512  # of st_blocks, stat(2)


async def follow_size(descriptor: int, work: Work, memory_bytes: int) -> None:
    """Tell how far a save is, beside what QEMU tells, until cancelled."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        tell_size(descriptor, work, memory_bytes)


def tell_size(descriptor: int, work: Work, memory_bytes: int) -> None:
    """Tell how far a save is, unless QEMU has told more. A file with holes, as of mapped-ram, is as far as it takes room."""
    status = os.fstat(descriptor)
    written_bytes = min(status.st_size, status.st_blocks * _BLOCK_BYTES) - CONTENTS_OFFSET
    total_bytes = work.job.total_bytes or memory_bytes
    done_bytes = min(max(work.job.processed_bytes, written_bytes), total_bytes)
    if (done_bytes, total_bytes) != (work.job.processed_bytes, work.job.total_bytes):
        work.progress(done_bytes, total_bytes)
