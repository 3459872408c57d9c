"""The agent is gone at every moment of a job on a disk: the next one ends it, whole, and nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

import pytest

from agent.blockjobs.block_job import BlockJob
from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
from agent.qemu.monitor import Monitor
from tests.binaries import MOSTLY_OLDER
from tests.qemu.disks import UUID_1, Agent, agent, disk_xml, domain, image
from tests.qemu.vms import stop_all

PATIENCE_S = 20.0
_LOOKS = frozenset({"query-status", "human-monitor-command"})
Begin = Callable[[Agent, Path, int], Coroutine[None, None, BlockJob]]


async def copy(one: Agent, place: Path, number: int) -> BlockJob:
    return await one.jobs.copy(one.vm, "vda", CopyOrder(place / f"copy{number}.qcow2", pivots_when_ready=True))


async def copy_top(one: Agent, place: Path, number: int) -> BlockJob:
    order = CopyOrder(place / f"copy{number}.qcow2", is_top_only=True, pivots_when_ready=True)
    return await one.jobs.copy(one.vm, "vda", order)


async def pull(one: Agent, place: Path, number: int) -> BlockJob:
    return await one.jobs.pull(one.vm, "vda", PullOrder())


async def commit(one: Agent, place: Path, number: int) -> BlockJob:
    first, second = await one.paths(), 1
    return await one.jobs.commit(one.vm, "vda", CommitOrder(first[-1], first[second]))


async def active_commit(one: Agent, place: Path, number: int) -> BlockJob:
    return await one.jobs.commit(one.vm, "vda", CommitOrder((await one.paths())[-1], pivots_when_ready=True))


async def snapshot(one: Agent, place: Path, number: int) -> BlockJob:
    return await one.jobs.snapshot(one.vm, "vda", place / f"snap{number}.qcow2")


KINDS: Mapping[str, Begin] = {one.__name__: one for one in (copy, copy_top, pull, commit, active_commit, snapshot)}


class Stop:
    """Holds the agent at its n-th command, before QEMU gets it or after the answer."""

    def __init__(self, monitor: Monitor, at: int, *, is_before: bool) -> None:
        self.is_there = asyncio.Event()
        self._execute = monitor.execute
        self._left = at
        self._is_before = is_before
        monitor.execute = self.execute  # type: ignore[method-assign]

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None, **how: float) -> object:
        is_it = command not in _LOOKS and self._left == 0
        self._left -= command not in _LOOKS
        if is_it and self._is_before:
            await self._hold()
        answer = await self._execute(command, arguments, **how)
        if is_it or self.is_there.is_set():
            await self._hold()
        return answer

    async def _hold(self) -> None:
        self.is_there.set()
        await asyncio.Event().wait()


async def crash(  # noqa: PLR0913 -- which moment of which job
    place: Path, version: str, begin: Begin, number: int, *, at: int, is_before: bool
) -> bool:
    """Let an agent begin a job and be gone at a moment of it; say whether there was such a moment."""
    async with agent(place / "s", version) as one:
        await one.vm.wait_attached()
        stop = Stop(one.vms.qemu(one.vm).monitor, at, is_before=is_before)
        async with asyncio.TaskGroup() as tasks:
            beginning = tasks.create_task(begin(one, place, number))
            held = tasks.create_task(stop.is_there.wait())
            over = tasks.create_task(_wait_over(one, beginning))
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait([held, over], return_when=asyncio.FIRST_COMPLETED)
            for task in (beginning, held, over):
                task.cancel()
        return stop.is_there.is_set()


async def _wait_over(one: Agent, beginning: asyncio.Task[BlockJob]) -> None:
    job = await beginning
    await one.jobs.get(job.id, "").wait_over()


async def recover(place: Path, version: str, number: int) -> None:
    """Let the next agent end it, and fail unless all is as if nothing had happened, or as it should be afterwards."""
    async with agent(place / "s", version) as one:
        await one.vm.wait_attached()
        for job in one.jobs.all():
            async with asyncio.timeout(PATIENCE_S):
                await one.jobs.get(job.id, "").wait_over()
        for written in (number, number - 1):
            await one.read(written % 250 + 1, 64 * (written % 60), 64)
        await one.assert_clean()
        chain = await one.paths()
        assert one.vm.persistent is not None
        for definition in (one.vm.persistent, one.vm.get_running().definition):
            named = [option.get("filename") for option in definition.find("blockdev") if option.get("filename")]
            assert Path(named[-1]).name == chain[0], (named, chain)
            assert {Path(name).name for name in named} <= {*chain}
        assert_no_files(place, number, chain)


def assert_no_files(place: Path, number: int, chain: list[str]) -> None:
    assert list(place.glob(".*.part")) == []
    assert list((place / "s/blockjobs").iterdir()) == []
    left = {path.name for path in place.glob(f"*{number}.qcow2") if path.name.startswith(("copy", "snap"))}
    assert left <= {*chain}


async def grow(one: Agent, place: Path, number: int) -> None:
    """Give the disk a few images again, and write to it."""
    await one.write(number % 250 + 1, 64 * (number % 60), 64)
    while len(await one.paths()) < 4:
        await one.jobs.snapshot(one.vm, "vda", place / f"layer{number}-{len(await one.paths())}.qcow2")


async def walk(place: Path, version: str, begin: Begin, *, step: int) -> int:
    """Crash at every `step`-th moment of a job, before and after its command; return how many there were."""
    image(place / "base.qcow2")
    count = 0
    async with agent(place / "s", version) as one:
        await one.vms.define(domain(disk_xml(place / "base.qcow2"), uuid=UUID_1), "web.xml")
        await one.vms.start(one.vm)
        await one.write(1, 0, 64)
    try:
        for is_before in (True, False):
            for at in range(0, 1000, step):
                count += 1
                async with agent(place / "s", version) as one:
                    await one.vm.wait_attached()
                    await grow(one, place, count)
                was_there = await crash(place, version, begin, count, at=at, is_before=is_before)
                await recover(place, version, count)
                if not was_there:
                    break
        async with agent(place / "s", version) as one:
            await one.vm.wait_attached()
            await one.vms.stop(one.vm, force=True)
            await one.vms.start(one.vm)
            await one.read(count % 250 + 1, 64 * (count % 60), 64)
    finally:
        async with agent(place / "s", version) as one:
            await one.vm.wait_attached()
            await stop_all(one.vms)
    return count


async def test_an_agent_that_is_gone_in_the_middle_leaves_nothing(place: Path) -> None:
    assert await walk(place, "10.0", copy, step=7) > 4


@pytest.mark.matrix
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", MOSTLY_OLDER)
@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_that_is_gone_at_any_command_leaves_nothing(place: Path, kind: str, version: str) -> None:
    assert await walk(place, version, KINDS[kind], step=1) > 10
