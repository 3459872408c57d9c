"""Jobs under way, their records, and files that appear whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from agent.saving import part
from agent.saving.file_size import tell_size
from agent.saving.job import Kind, State, VmJob
from agent.saving.record import JobRecord, JobRecords
from agent.saving.save_file import CONTENTS_OFFSET
from agent.saving.work import Cancelled, Work
from agent.vm.jobs import Job, Jobs
from common.errors import WrongState

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")


def make_work() -> tuple[Work, Jobs]:
    jobs = Jobs(lambda _: None)
    job = VmJob("j-1", Kind.SAVE, UUID_1, "web", Path("/v/web.save"), started_at_s=1.0)
    return Work(job, jobs.take(UUID_1, "web", Job.SAVE, "j-1")), jobs


async def test_followers_see_each_change_they_wait_for_and_the_end() -> None:
    work, jobs = make_work()

    async def watch() -> list[tuple[str, int, State]]:
        return [(job.step, job.remaining_bytes, job.state) async for job in work.follow()]

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        await asyncio.sleep(0)
        work.at_step("writing")
        await asyncio.sleep(0)
        work.progress(30, 100)
        await asyncio.sleep(0)
        work.end(State.COMPLETED, 2.0)

    assert watching.result() == [
        ("", 0, State.ACTIVE),
        ("writing", 0, State.ACTIVE),
        ("writing", 70, State.ACTIVE),
        ("writing", 70, State.COMPLETED),
    ]
    assert jobs.find(UUID_1) is None


async def test_a_wished_cancel_ends_what_a_thread_reads() -> None:
    work, _ = make_work()
    watcher = work.watcher()
    watcher(1, 2)

    work.cancel_wished.set()

    with pytest.raises(Cancelled, match="the save of VM web was cancelled"):
        await asyncio.to_thread(watcher, 2, 2)


def test_records_come_back_and_one_that_is_broken_hinders_no_other(tmp_path: Path) -> None:
    record = JobRecord("j-1", Kind.SAVE, UUID_1, "web", "/v/web.save", "/v/.web.save.part", guest_runs=True, started_at_s=1.5)
    records = JobRecords(tmp_path)
    records.save(record)
    (tmp_path / "a.json").write_text("{}")

    found = records.load()
    records.remove("j-1")

    assert found == [record]
    assert records.load() == []


def test_a_file_appears_whole_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "web.save"
    written = part.part_path(path, "0123456789")
    with part.create(written) as file:
        file.write(b"x")
    part.commit(written, path)
    with part.create(written):
        pass

    with pytest.raises(WrongState, match="exists already"):
        part.commit(written, path)

    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(WrongState, match="its directory does not exist"):
        part.check_free(tmp_path / "none/web.save")


@pytest.mark.parametrize(
    ("told_by_qemu", "written_bytes", "expected"),
    [
        ((0, 0), 4096, (4096, 8192)),
        ((6000, 9000), 4096, (6000, 9000)),
        ((100, 9000), 4096, (4096, 9000)),
        ((0, 0), 99999, (8192, 8192)),
    ],
)
def test_a_save_of_which_qemu_tells_nothing_is_as_far_as_its_file(
    told_by_qemu: tuple[int, int], written_bytes: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    work, _ = make_work()
    work.progress(*told_by_qemu)
    with (tmp_path / "web.save").open("wb") as file:
        file.write(b"x" * (CONTENTS_OFFSET + written_bytes))
        file.flush()

        tell_size(file.fileno(), work, 8192)

    assert (work.job.processed_bytes, work.job.total_bytes) == expected
