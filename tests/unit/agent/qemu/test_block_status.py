"""What QEMU says of disks and jobs is decoded as it was recorded from real ones."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agent.qemu.block_status import (
    DriveReport,
    JobStatus,
    decode_block_jobs,
    decode_drives,
    decode_job_status,
    decode_jobs,
    job_change_of,
)
from agent.qemu.errors import NotUnderstood
from agent.qemu.subscription import Event
from tests import transcripts

MIB = 1 << 20
JOBS = [
    (version, name.partition(".")[2])
    for version in transcripts.VERSIONS
    for name in transcripts.names(version, "query-jobs.*")
    if not name.endswith(".none")
]
CHAINS = {
    "plain": ["top", "mid", "base"],
    "overlay": ["over", "top", "mid", "base"],
    "mirrored": ["top", "mid", "base"],
    "pivoted": ["copy"],
    "streamed": ["top", "base"],
    "committed": ["top", "base"],
    "committing": ["top", "base"],
    "active-committed": ["base"],
}
ERRORS = {"cancelled": "Operation canceled", "failed": "Input/output error", "nospace": "No space left on device"}
SLOW = {"running", "running-stream", "running-commit", "paused", "concluded-cancelled"}


def reply(version: str, name: str) -> Any:
    return transcripts.load(version, name)["return"]


def drives(version: str, name: str) -> tuple[DriveReport, ...]:
    return decode_drives(reply(version, f"query-block.{name}"))


@pytest.mark.parametrize(("version", "name"), JOBS)
def test_a_job_of_every_status_is_understood_by_both_queries_alike(version, name):
    status, _, how = name.partition("-")

    (job,) = decode_jobs(reply(version, f"query-jobs.{name}"))
    (block_job,) = decode_block_jobs(reply(version, f"query-block-jobs.{name}"))

    assert job.status is block_job.status is JobStatus(status)
    assert job.id == block_job.id == "job"
    assert job.type == block_job.type == ("stream" if how == "stream" else "commit" if "commit" in how else "mirror")
    assert job.total == block_job.len_bytes >= (name != "concluded-cancelled")  # 11.1 has counted nothing by then
    assert (job.current == block_job.offset_bytes) >= (status != "running")  # asked one after the other
    assert job.error == (ERRORS.get(how, "") if status == "concluded" else "")
    assert block_job.is_ready is (status in ("ready", "standby"))
    assert block_job.is_paused is (status in ("paused", "standby"))
    assert block_job.speed_bytes_per_second == (1 if name in SLOW else 0)


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_only_a_job_that_stands_still_for_an_error_tells_it_in_its_io_status(version):
    told = {
        name.partition(".")[2]: decode_block_jobs(reply(version, name))[0].io_status
        for name in transcripts.names(version, "query-block-jobs.*-*")
    }

    assert told.pop("paused-nospace") == "nospace"
    assert set(told.values()) == {"ok"}


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_job_that_ended_well_has_done_all_and_tells_no_error(version):
    (job,) = decode_jobs(reply(version, "query-jobs.concluded"))

    copied = 4 * MIB if version in ("7.2", "10.0") else 3 * MIB  # since then what reads as zeros is left out
    assert (job.current, job.total, job.error) == (copied, copied, "")


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_no_jobs_are_none(version):
    assert decode_jobs(reply(version, "query-jobs.none")) == ()
    assert decode_block_jobs(reply(version, "query-block-jobs.none")) == ()


@pytest.mark.parametrize("version", transcripts.VERSIONS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_of_a_disk_is_read_whatever_job_is_on_it(version, name):
    disk, _, _ = drives(version, name)

    assert disk.node == CHAINS[name][0]
    assert disk.image is not None
    assert [image.filename for image in disk.image.chain()] == [f"/run/ferry/{node}.qcow2" for node in CHAINS[name]]
    assert [image.backing_filename for image in disk.image.chain()] == [
        *(f"/run/ferry/{node}.qcow2" for node in CHAINS[name][1:]),
        "",
    ]
    assert {image.virtual_size_bytes for image in disk.image.chain()} == {4 * MIB}


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_drive_is_found_by_its_device_and_an_empty_one_has_no_node(version):
    disk, raw, cd = drives(version, "plain")

    assert disk.is_of("virtio-disk0")
    assert not disk.is_of("virtio-disk1")
    assert not disk.is_of("virtio-disk")
    assert not disk.is_of("")
    assert cd.is_of("sata0-0-0")
    assert (raw.node, raw.is_read_only, disk.is_read_only) == ("raw", True, False)
    assert (cd.node, cd.image, cd.is_read_only) == ("", None, False)


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_an_image_tells_what_it_was_made_with(version):
    disk, raw, _ = drives(version, "plain")

    assert disk.image is not None
    assert raw.image is not None
    assert (disk.image.format, disk.image.cluster_size_bytes, disk.image.backing_format) == ("qcow2", 65536, "qcow2")
    assert disk.image.specifics["compat"] == "1.1"
    assert disk.image.actual_size_bytes is not None
    assert MIB < disk.image.actual_size_bytes < 2 * MIB
    assert (raw.image.format, raw.image.cluster_size_bytes, raw.image.backing) == ("raw", None, None)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        [7],
        [{"device": "job"}],
        [{"id": "job", "type": "mirror", "status": 7, "current-progress": 0, "total-progress": 0}],
        [{"id": "job", "type": "mirror", "status": "ready", "current-progress": "0", "total-progress": 0}],
        [{"id": "job", "type": "mirror", "status": "ready", "current-progress": 0, "total-progress": 0, "error": 5}],
    ],
)
def test_jobs_of_another_shape_are_an_error_that_names_what_is_missing(broken):
    with pytest.raises(NotUnderstood, match="QEMU's reply: "):
        decode_jobs(broken)


@pytest.mark.parametrize("key", ["device", "type", "status", "len", "offset", "speed", "paused", "ready", "io-status"])
@pytest.mark.parametrize("wrong", ["missing", None, [1]])
def test_a_block_job_without_what_we_rely_on_is_an_error_that_names_it(key, wrong):
    (job,) = cast("list[dict[str, object]]", reply("7.2", "query-block-jobs.ready"))
    job.pop(key)
    if wrong != "missing":
        job[key] = wrong

    with pytest.raises(NotUnderstood, match=key):
        decode_block_jobs([job])


@pytest.mark.parametrize("key", ["filename", "format", "virtual-size"])
def test_an_image_without_what_we_rely_on_is_an_error_at_any_depth(key):
    (disk, *_) = cast("list[dict[str, Any]]", reply("7.2", "query-block.plain"))
    disk["inserted"]["image"]["backing-image"]["backing-image"].pop(key)

    with pytest.raises(NotUnderstood, match=key):
        decode_drives([disk])


def test_a_status_from_the_future_is_unknown_and_no_error():
    (job,) = decode_jobs([{"id": "j", "type": "mirror", "status": "dreaming", "current-progress": 0, "total-progress": 0}])

    assert job.status is JobStatus.UNKNOWN
    assert decode_job_status("standby") is JobStatus.STANDBY


def test_a_change_of_a_job_is_told_by_its_event_alone():
    def event(name: str, **details: object) -> Event:
        return Event(name, details, at_s=0.0, received_s=0.0)

    assert job_change_of(event("JOB_STATUS_CHANGE", id="job", status="ready")) == ("job", JobStatus.READY)
    assert job_change_of(event("JOB_STATUS_CHANGE", id="job", status="new")) == ("job", JobStatus.UNKNOWN)
    assert job_change_of(event("BLOCK_JOB_READY", device="job")) is None
