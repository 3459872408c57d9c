"""QEMU's reports are decoded as they were recorded from real ones."""

from __future__ import annotations

import pytest

from agent.qemu.errors import NotUnderstood
from agent.qemu.status import (
    MigrationStatus,
    RunState,
    SocketAddress,
    decode_migration,
    decode_migration_status,
    decode_run_state,
    migration_status_of,
)
from agent.qemu.subscription import Event
from tests import transcripts

REPORTS = [
    (version, name)
    for version in transcripts.VERSIONS
    for name in transcripts.names(version, "query-migrate.*")
    if "listening" not in name
]
STATES = [(version, name) for version in transcripts.VERSIONS for name in transcripts.names(version, "query-status.*")]
SENDING = {"active", "pre-switchover", "device", "completed", "postcopy-active", "postcopy-paused", "postcopy-recover"}


@pytest.mark.parametrize(("version", "name"), REPORTS)
def test_the_report_of_every_status_is_understood(version, name):
    _, side, status = name.split(".")

    report = decode_migration(transcripts.load(version, name)["return"])

    assert report.status is MigrationStatus(status)
    assert report.status_text == status
    assert (report.ram is not None) >= (side == "source" and status in SENDING)


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_finished_move_tells_its_times_and_bytes(version):
    report = decode_migration(transcripts.load(version, "query-migrate.source.completed")["return"])

    assert report.ram is not None
    assert report.ram.remaining_bytes == 0
    assert 0 < report.ram.transferred_bytes < report.ram.total_bytes
    assert report.ram.page_size_bytes == 4096
    assert report.ram.dirty_sync_count >= 2
    assert report.downtime_ms is not None
    assert report.total_time_ms is not None
    assert report.setup_time_ms is not None
    assert report.downtime_ms <= report.total_time_ms


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_transfer_tells_what_is_left_and_the_expected_downtime(version):
    report = decode_migration(transcripts.load(version, "query-migrate.source.active")["return"])

    assert report.ram is not None
    assert report.ram.remaining_bytes > 0
    assert report.expected_downtime_ms is not None
    assert report.downtime_ms is None


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_failed_move_tells_why(version):
    report = decode_migration(transcripts.load(version, "query-migrate.source.failed")["return"])

    assert report.error_desc


@pytest.mark.parametrize("version", transcripts.VERSIONS)
@pytest.mark.parametrize(("family", "host"), [("ipv4", "127.0.0.1"), ("ipv6", "::1")])
def test_a_listening_destination_tells_its_address(version, family, host):
    report = decode_migration(transcripts.load(version, f"query-migrate.destination.listening-{family}")["return"])

    assert report.port is not None
    assert report.listening == (SocketAddress("inet", host, report.port),)


@pytest.mark.parametrize(("version", "name"), STATES)
def test_every_recorded_run_state_is_understood(version, name):
    assert decode_run_state(transcripts.load(version, name)["return"]) is RunState(name.partition(".")[2])


def test_a_status_from_the_future_is_unknown_and_keeps_its_text():
    report = decode_migration({"status": "teleporting"})

    assert report.status is MigrationStatus.UNKNOWN
    assert report.status_text == "teleporting"
    assert decode_run_state({"status": "dreaming", "running": False}) is RunState.UNKNOWN


def test_only_three_statuses_are_final():
    final = {status for status in MigrationStatus if status.is_final}

    assert final == {MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED}


def test_a_migration_event_tells_its_status_and_others_tell_none():
    def event(name: str, **details: object) -> Event:
        return Event(name, details, at_s=0.0, received_s=0.0)

    assert migration_status_of(event("MIGRATION", status="device")) is MigrationStatus.DEVICE
    assert migration_status_of(event("MIGRATION", status="new")) is MigrationStatus.UNKNOWN
    assert migration_status_of(event("STOP")) is None
    assert decode_migration_status("wait-unplug") is MigrationStatus.WAIT_UNPLUG


@pytest.mark.parametrize(
    "reply",
    [None, [], "active", {"status": 7}, {"status": "active", "ram": {"total": 1}}, {"socket-address": [{"type": 1}]}],
)
def test_a_reply_of_another_shape_is_an_error_that_names_what_is_missing(reply):
    with pytest.raises(NotUnderstood, match="QEMU's reply: "):
        decode_migration(reply)
