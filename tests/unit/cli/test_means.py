"""Means of a move as they are typed, and figures as they are shown."""

from __future__ import annotations

import json

import pytest

from coordinator.cli.exits import ExitCode
from ferry.common.v1 import means_pb2 as means_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import migration

M = pb.Migration


def moved() -> pb.Migration:
    made = migration(M.STATE_SUCCEEDED, M.GUEST_LOCATION_DESTINATION)
    made.vm_uuid = "u-1"
    made.options.means.compression = means_pb.COMPRESSION_ZSTD
    made.options.multifd_channel_count = 2
    made.downtime.total.FromMilliseconds(12)
    made.progress.ram_total_bytes = 1 << 29
    made.progress.throttle_percent = 40
    made.progress.figures.multifd_bytes = 1 << 20
    made.progress.figures.xbzrle.cache_miss_count = 17
    made.progress.figures.blocktime_ms = 7
    made.progress.figures.vcpu_blocktimes_ms.extend([8, 9])
    made.progress.figures.dirty_limit_ring_full_us = 5
    return made


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (
            "--multifd 2 --compression zstd --compression-level 3",
            means_pb.Means(compression=means_pb.COMPRESSION_ZSTD, compression_level=3),
        ),
        ("--xbzrle-cache 64MiB", means_pb.Means(xbzrle_cache_bytes=64 << 20)),
        ("--multifd 2 --plain --zero-copy", means_pb.Means(zero_copy=True)),
        ("--switchover-bandwidth 1GiB/s", means_pb.Means(switchover_bandwidth_bytes_per_second=1 << 30)),
        ("--dirty-limit 2MiB/s", means_pb.Means(dirty_limit_bytes_per_second=2 << 20)),
        ("--auto-converge", means_pb.Means(auto_converge=means_pb.AutoConverge())),
        (
            "--auto-converge --throttle-initial 30 --throttle-increment 5 --throttle-max 90",
            means_pb.Means(auto_converge=means_pb.AutoConverge(initial_percent=30, increment_percent=5, max_percent=90)),
        ),
    ],
)
async def test_means_travel_as_they_were_typed(fleet, typed, sent):
    fleet.coordinator.story = [moved()]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b", *typed.split())

    assert ended.code is ExitCode.DONE, ended.err
    assert fleet.coordinator.requests[0].options.means == sent


async def test_without_a_word_of_means_none_are_sent(fleet):
    fleet.coordinator.story = [moved()]

    await fleet.ferry("migrate", "web", "--to", "host-b")

    assert not fleet.coordinator.requests[0].options.HasField("means")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compression", "lz4"), "zstd"),
        (("--multifd", "2", "--compression", "zlib", "--compression-level", "10"), "0 to 9"),
        (("--compression-level", "1"), "--compression zlib, zstd or qatzip"),
        (("--xbzrle-cache", "64"), "unit '' is not known; sizes are in"),
        (("--xbzrle-cache", "0.3B"), "not a whole number of bytes"),
        (("--throttle-initial", "30"), "--throttle-initial is for --auto-converge"),
        (("--auto-converge", "--throttle-max", "0"), "--throttle-max 0 is out of range: 1 to 99"),
        (("--switchover-bandwidth", "10"), "did you mean"),
        (("--compression", "zstd"), "--compression zstd needs --multifd"),
        (("--zero-copy", "--multifd", "2"), "--zero-copy needs --multifd and --plain"),
        (("--zero-copy", "--multifd", "2", "--plain", "--compression", "zlib"), "exclude each other"),
        (("--xbzrle-cache", "64MiB", "--multifd", "2"), "--xbzrle-cache and --multifd exclude"),
        (("--auto-converge", "--dirty-limit", "2MiB/s"), "--auto-converge and --dirty-limit exclude"),
    ],
)
async def test_means_that_cannot_be_are_refused_before_anything_is_asked(fleet, options, words):
    typed = await fleet.ferry("migrate", "web", "--to", "host-b", *options)

    assert typed.code is ExitCode.USAGE
    assert words in typed.err
    assert fleet.coordinator.requests == []


async def test_the_figures_of_a_move_are_shown_with_stats_and_always_in_json(fleet):
    fleet.coordinator.story = [moved()]

    table = (await fleet.ferry("migration", "show", "0f9b", "--stats")).out
    way = (await fleet.ferry("migration", "show", "0f9b")).out
    shown = json.loads((await fleet.ferry("migration", "show", "0f9b", "-o", "json")).out)

    assert "1.00 MiB (1048576 bytes)" in table
    assert "throttled" in table
    assert "7.00 ms all at once; each: 8.00 ms, 9.00 ms" in table
    assert "17, rate 0.00" in table
    assert "2 multifd channels, zstd" in way
    assert shown["progress"]["figures"]["multifd_bytes"] == 1 << 20
    assert shown["progress"]["figures"]["skipped_page_count"] is None


async def test_the_last_move_of_a_vm_tells_its_figures(fleet):
    running, of_another = migration(M.STATE_TRANSFERRING), moved()
    running.vm_uuid, of_another.vm_uuid = "u-1", "u-2"
    fleet.coordinator.story = [migration(M.STATE_FAILED), running, moved(), of_another]

    ended = await fleet.ferry("vm", "migration-stats", "web", "--completed")
    all_ended = await fleet.ferry("vm", "migration-stats", "web", "--completed", "-o", "json")
    now = await fleet.ferry("vm", "migration-stats", "web", "-o", "json")

    assert "12.0 ms" in ended.out
    assert [(one["vm_uuid"], one["state"]) for one in json.loads(all_ended.out)] == [("u-1", "SUCCEEDED")]
    assert [one["state"] for one in json.loads(now.out)] == ["TRANSFERRING"]


async def test_a_vm_that_does_not_move_is_said_to_have_moved(fleet):
    fleet.coordinator.story = [moved()]

    typed = await fleet.ferry("vm", "migration-stats", "web")

    assert typed.code is ExitCode.REFUSED
    assert "no migration of web runs; --completed shows those that have ended [MIGRATION_UNKNOWN]" in typed.err
