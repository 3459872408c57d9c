"""The end of copies, as seen by whoever waits for it."""

from __future__ import annotations

import pytest

from agent.blockjobs.mirrors import Mirrors
from agent.qemu.block_commands import BlockCommands
from agent.qemu.errors import QemuGone


class DeadBlocks(BlockCommands):
    """Of a QEMU that has ended."""

    def __init__(self) -> None:
        pass

    async def settle_job(self, job_id: str) -> None:
        raise QemuGone(job_id)


async def test_what_ends_the_settling_of_several_copies_is_told_as_it_is():
    mirrors = Mirrors(DeadBlocks(), {"vda": "one", "vdb": "two"})

    with pytest.raises(QemuGone):
        await mirrors.settle()
