"""The end of copies: whoever waits for it hears why, and the guest stands still while one is aborted."""

from __future__ import annotations

import pytest

from agent.blockjobs.mirrors import MirrorFailed, Mirrors
from agent.qemu.block_commands import BlockCommands
from agent.qemu.block_status import BlockJobReport, JobReport, JobStatus
from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuGone
from agent.qemu.status import RunState
from agent.qemu.subscription import Event


class DeadBlocks(BlockCommands):
    """Of a QEMU that has ended."""

    def __init__(self) -> None:
        pass

    async def settle_job(self, job_id: str) -> None:
        raise QemuGone(job_id)


class CopyingBlocks(BlockCommands):
    """Of a QEMU with one copy, that ends when it is aborted while the guest runs."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.job: JobStatus | None = JobStatus.RUNNING
        self.io_status = "ok"
        self.nodes = {"one"}
        self.guest_runs = True

    async def query_jobs(self) -> tuple[JobReport, ...]:
        return () if self.job is None else (JobReport("one", "mirror", self.job, 1, 2, ""),)

    async def query_block_jobs(self) -> tuple[BlockJobReport, ...]:
        job = self.job or JobStatus.NULL
        return (BlockJobReport("one", "mirror", job, 2, 1, 0, is_paused=True, is_ready=False, io_status=self.io_status),)

    async def query_yankable_nodes(self) -> tuple[str, ...]:
        return tuple(self.nodes)

    async def yank_nodes(self, nodes) -> None:
        self.asked.append("yank")

    async def abort_job(self, job_id: str) -> None:
        assert not self.guest_runs, "corrupted double-linked list"
        self.asked.append("abort")
        self.job = JobStatus.CONCLUDED

    async def dismiss_job(self, job_id: str) -> None:
        self.asked.append("dismiss")
        self.job = None

    async def remove_node(self, node: str) -> None:
        self.asked.append("remove")
        self.nodes.discard(node)


class FakeQemu(Qemu):
    """A guest that runs, with these disks."""

    def __init__(self, block: BlockCommands, state: RunState = RunState.RUNNING) -> None:
        self.block = block
        self.state = state
        self.told: list[str] = []

    async def query_status(self) -> RunState:
        return self.state

    async def stop(self) -> None:
        self._tell("stop", runs=False)

    async def cont(self) -> None:
        self._tell("cont", runs=True)

    def _tell(self, word: str, *, runs: bool) -> None:
        self.told.append(word)
        if isinstance(self.block, CopyingBlocks):
            self.block.guest_runs = runs


def error(operation: str) -> Event:
    return Event("BLOCK_JOB_ERROR", {"device": "one", "operation": operation, "action": "stop"}, 0.0, 0.0)


async def test_what_ends_the_settling_of_several_copies_is_told_as_it_is():
    mirrors = Mirrors(FakeQemu(DeadBlocks()), {"vda": "one", "vdb": "two"})

    with pytest.raises(QemuGone):
        await mirrors.settle()


async def test_a_copy_is_aborted_while_the_guest_stands_still_and_only_then():
    blocks = CopyingBlocks()
    qemu = FakeQemu(blocks)

    await Mirrors(qemu, {"vda": "one"}).remove()

    assert qemu.told == ["stop", "cont"]
    assert blocks.asked == ["yank", "abort", "dismiss", "remove"]


async def test_a_guest_that_does_not_run_is_not_let_run():
    blocks = CopyingBlocks()
    blocks.guest_runs = False
    qemu = FakeQemu(blocks, RunState.PAUSED)

    await Mirrors(qemu, {"vda": "one"}).remove()

    assert qemu.told == []


async def test_a_copy_that_has_ended_is_removed_without_a_word_to_the_guest():
    blocks = CopyingBlocks()
    blocks.job = JobStatus.CONCLUDED
    qemu = FakeQemu(blocks)

    await Mirrors(qemu, {"vda": "one"}).remove()

    assert qemu.told == []
    assert blocks.asked == ["yank", "dismiss", "remove"]


@pytest.mark.parametrize(("io_status", "words"), [("nospace", "No space left on device"), ("failed", "Input/output error")])
async def test_a_copy_that_an_error_has_stopped_has_failed_and_says_why(io_status, words):
    blocks = CopyingBlocks()
    blocks.io_status = io_status
    mirrors = Mirrors(FakeQemu(blocks), {"vda": "one"})
    healthy = mirrors.find_failure()

    mirrors.see(error("write"))
    await mirrors.ask()

    assert not healthy
    assert mirrors.are_broken
    assert mirrors.find_failure() == f"disk vda could not be copied: {words} (writing its copy failed)"


async def test_an_error_ends_the_settling_at_once():
    blocks = CopyingBlocks()
    blocks.job, blocks.io_status = JobStatus.STANDBY, "failed"
    mirrors = Mirrors(FakeQemu(blocks), {"vda": "one"})
    mirrors.see(error("write"))

    with pytest.raises(MirrorFailed, match="Input/output error"):
        await mirrors.settle()
