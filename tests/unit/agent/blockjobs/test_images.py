from __future__ import annotations

import os
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.blockjobs import images
from agent.blockjobs.block_job import BlockJobRecord, BlockJobRecords, Kind, Place, qemu_id
from agent.blockjobs.following import event_of
from agent.blockjobs.images import MadeFile
from agent.blockjobs.job import BecameReady, Cancelled, Changed, Completed, JobEvent
from agent.blockjobs.sweep import is_ours
from agent.guest_user import GuestUser
from agent.qemu.block_status import JobStatus
from agent.qemu.subscription import Event
from agent.vm.jobs import DiskLock, Job, Jobs
from common.errors import Busy, WrongState

NOBODY = GuestUser()


def planned(directory: Path, job_id: str = "01234567-89ab") -> MadeFile:
    path = directory / "new.qcow2"
    return MadeFile(str(path), str(images.part_of(path, job_id)))


def test_a_file_of_ours_is_removed(tmp_path: Path):
    made = images.make(planned(tmp_path), tmp_path / "none", NOBODY)
    images.put_in_place(made)
    assert images.is_ours(made)

    images.discard(made)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_put_in_place_is_removed(tmp_path: Path):
    made = images.make(planned(tmp_path), tmp_path / "none", NOBODY)

    images.discard(made)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_in_its_place_is_left(tmp_path: Path):
    made = images.make(planned(tmp_path), tmp_path / "none", NOBODY)
    (tmp_path / "new.qcow2").write_text("somebody's")

    with pytest.raises(WrongState, match="exists already"):
        images.put_in_place(made)
    images.discard(made)

    assert (tmp_path / "new.qcow2").read_text() == "somebody's"
    assert len(list(tmp_path.iterdir())) == 1


def test_before_its_inode_is_on_record_nothing_in_the_users_place_is_ours(tmp_path: Path):
    (tmp_path / "new.qcow2").write_text("somebody's")

    images.discard(planned(tmp_path))

    assert (tmp_path / "new.qcow2").exists()


def test_a_file_has_the_permissions_of_the_image_that_it_is_made_for(tmp_path: Path):
    like = tmp_path / "vda.qcow2"
    like.touch()
    like.chmod(0o640)

    made = images.make(planned(tmp_path), like, NOBODY)

    assert Path(made.part_path).stat().st_mode & 0o777 == 0o640


def test_room_is_told_with_both_numbers(tmp_path: Path):
    free = os.statvfs(tmp_path)
    needed = free.f_bavail * free.f_frsize * 2 + (1 << 30)

    with pytest.raises(WrongState, match=r"a copy needs up to \d+\.\d MiB, \d+\.\d MiB are free there") as refused:
        images.check_room(tmp_path / "new", needed, "a copy")

    assert refused.value.facts["needed_bytes"] == str(needed)


def test_an_image_tells_its_format_size_and_what_it_stands_on(tmp_path: Path):
    name = b"base.qcow2"
    head = b"QFI\xfb" + (3).to_bytes(4) + (104).to_bytes(8) + len(name).to_bytes(4) + (16).to_bytes(4) + (8 << 20).to_bytes(8)
    (tmp_path / "a").write_bytes(head.ljust(104, b"\0") + name)
    (tmp_path / "b").write_bytes(bytes(1024))

    found, raw = images.find_image(tmp_path / "a"), images.find_image(tmp_path / "b")

    assert (found.format, found.virtual_size_bytes, found.backing_path) == ("qcow2", 8 << 20, str(tmp_path / "base.qcow2"))
    assert (raw.format, raw.virtual_size_bytes, raw.backing_path) == ("raw", 1024, "")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("JOB_STATUS_CHANGE", {"id": "j", "status": "ready"}, Changed(JobStatus.READY)),
        ("JOB_STATUS_CHANGE", {"id": "other", "status": "ready"}, None),
        ("BLOCK_JOB_READY", {"device": "j", "type": "mirror"}, BecameReady()),
        ("BLOCK_JOB_COMPLETED", {"device": "j", "type": "mirror"}, Completed()),
        ("BLOCK_JOB_COMPLETED", {"device": "j", "error": "Input/output error"}, Completed("Input/output error")),
        ("BLOCK_JOB_COMPLETED", {"device": "other"}, None),
        ("BLOCK_JOB_CANCELLED", {"device": "j"}, Cancelled()),
        ("BLOCK_JOB_ERROR", {"device": "j", "action": "report"}, None),
        ("STOP", {}, None),
    ],
)
def test_what_an_event_says_of_a_job(name: str, data: dict[str, object], found: JobEvent | None):
    assert event_of(Event(name, data, 0.0, 0.0), "j") == found


def test_names_in_qemu_are_ours_and_fit():
    name = qemu_id(str(uuid4()))

    assert all(is_ours(one) for one in (name, f"{name}-f", f"{name}-c"))
    assert len(f"{name}-f") <= 31
    assert not any(is_ours(one) for one in ("vda", "ferry-", "ferry-0123456789-0", "ferry-migration", f"{name}-x", f"x{name}"))


def test_a_record_is_read_back_and_a_broken_one_left(tmp_path: Path):
    records = BlockJobRecords(tmp_path)
    place = Place("/i/top", "qcow2", "vda", "vda-file")
    record = BlockJobRecord(
        "a-b", Kind.COPY, UUID(int=1), "web", "vda", "virtio-disk0", "vda", "/i/new", (place,), (place,), planned(tmp_path), 1.0
    )
    records.save(record)
    (tmp_path / "broken.json").write_text("{")

    assert records.load() == [record]
    records.remove("a-b")
    assert records.load() == []
    assert (tmp_path / "broken.json").exists()


def lock(disk: str, holder: str) -> DiskLock:
    return DiskLock(UUID(int=1), disk, "copy", holder)


def test_a_disk_has_one_job_and_keeps_the_vm_from_leaving():
    jobs = Jobs(lambda _: None)
    jobs.take_disk("web", lock("vda", "1"))
    jobs.take_disk("web", lock("vdb", "2"))

    with pytest.raises(Busy, match="disk vda of VM web is busy: copy 1; ferry block abort web vda ends it"):
        jobs.take_disk("web", lock("vda", "3"))
    for job in (Job.MIGRATION_OUT, Job.SAVE, Job.RELEASE, Job.START):
        with pytest.raises(Busy, match="disk vda"):
            jobs.take(UUID(int=1), "web", job, "m")
    with jobs.take(UUID(int=1), "web", Job.PAUSE, ""):
        pass
    jobs.release_disk(lock("vda", "1"))
    jobs.release_disk(lock("vdb", "2"))
    jobs.take(UUID(int=1), "web", Job.MIGRATION_OUT, "m")
    with pytest.raises(Busy, match="migration-out m"):
        jobs.take_disk("web", lock("vda", "4"))


def test_an_overlay_is_empty_until_it_was_written_to(tmp_path: Path):
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    subprocess.run([*create, str(base), "1M"], check=True)
    subprocess.run([*create, "-b", str(base), "-F", "qcow2", str(overlay)], check=True)

    before = images.find_image(overlay)
    subprocess.run(["qemu-io", "-c", "write 0 64k", str(overlay)], check=True, stdout=subprocess.DEVNULL)
    after = images.find_image(overlay)

    assert (before.has_clusters, after.has_clusters) == (False, True)
    assert after.backing_path == str(base)
    assert after.virtual_size_bytes == 1 << 20
