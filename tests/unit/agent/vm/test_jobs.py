"""One job at a time."""

from __future__ import annotations

from uuid import UUID

import pytest

from agent.vm.jobs import Job, Jobs
from common.errors import Busy

VM = UUID(int=1)


def test_a_second_job_is_told_who_holds_the_vm() -> None:
    jobs = Jobs(lambda _: None)
    jobs.take(VM, "web", Job.MIGRATION_OUT, "m-1")

    with pytest.raises(Busy, match="VM web is busy: migration-out m-1") as raised:
        jobs.take(VM, "web", Job.STOP, "")

    assert raised.value.reason == "VM_BUSY"
    assert raised.value.facts["migration"] == "m-1"


def test_the_same_migration_gets_its_lock_again_and_another_does_not() -> None:
    jobs = Jobs(lambda _: None)
    lock = jobs.take(VM, "web", Job.MIGRATION_OUT, "m-1")

    assert jobs.take(VM, "web", Job.MIGRATION_OUT, "m-1") is lock
    with pytest.raises(Busy):
        jobs.take(VM, "web", Job.MIGRATION_OUT, "m-2")


def test_jobs_without_a_holder_are_never_the_same() -> None:
    jobs = Jobs(lambda _: None)
    jobs.take(VM, "web", Job.START, "")

    with pytest.raises(Busy, match=r"busy: start$"):
        jobs.take(VM, "web", Job.START, "")


def test_release_is_told_once_and_frees_the_vm() -> None:
    released: list[UUID] = []
    jobs = Jobs(released.append)

    with jobs.take(VM, "web", Job.STOP, "") as lock:
        assert jobs.find(VM) is lock
    lock.release()

    assert released == [VM]
    assert jobs.find(VM) is None


def test_an_old_lock_cannot_release_a_new_one() -> None:
    jobs = Jobs(lambda _: None)
    old = jobs.take(VM, "web", Job.STOP, "")
    old.release()
    new = jobs.take(VM, "web", Job.STOP, "")

    old.release()

    assert jobs.find(VM) is new
