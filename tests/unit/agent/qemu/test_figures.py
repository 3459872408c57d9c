"""Figures are decoded as real QEMUs gave them."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from agent.migration.progress import progress_of
from agent.qemu.errors import NotUnderstood
from agent.qemu.figures import Figures, decode_figures
from agent.qemu.status import decode_migration
from tests import transcripts


def reply(version: str, name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", transcripts.load(version, name)["return"])


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_channels_tell_what_they_sent(version):
    figures = decode_figures(reply(version, "query-migrate-multifd.source"))

    assert figures.multifd_bytes > 0
    assert figures.page_size_bytes == 4096
    assert figures.precopy_bytes > 0
    assert figures.xbzrle is None
    assert (figures.skipped_page_count is None) is (version != "7.2")


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_xbzrle_tells_of_its_cache(version):
    figures = decode_figures(reply(version, "query-migrate-xbzrle.source"))

    assert figures.xbzrle is not None
    assert figures.xbzrle.cache_size_bytes == 64 << 20


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_post_copy_tells_what_followed_and_who_waited(version):
    source = decode_figures(reply(version, "query-migrate-postcopy.source"))
    destination = decode_figures(reply(version, "query-migrate-postcopy.destination"))

    assert source.postcopy_bytes > 0
    assert source.blocktime_ms is None
    assert destination.blocktime_ms is not None
    assert len(destination.vcpu_blocktimes_ms) == 1


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_a_destination_has_progress_only_where_vcpus_may_have_waited(version):
    after_post_copy = progress_of(decode_migration(reply(version, "query-migrate-postcopy.destination")))

    assert after_post_copy is not None
    assert after_post_copy.figures.blocktime_ms is not None
    assert progress_of(decode_migration(reply(version, "query-migrate.destination.completed"))) is None


@pytest.mark.parametrize("version", transcripts.VERSIONS)
def test_the_throttle_that_qemu_no_longer_tells_at_the_end_is_remembered(version):
    report = reply(version, "query-migrate.source.active") | {"cpu-throttle-percentage": 40}
    before = progress_of(decode_migration(report))

    after = progress_of(decode_migration(reply(version, "query-migrate.source.completed")), before)

    assert after is not None
    assert after.throttle_percent == 40


def test_dirty_limit_tells_its_times():
    figures = decode_figures({"dirty-limit-throttle-time-per-round": 12, "dirty-limit-ring-full-time": 34})

    assert (figures.dirty_limit_throttle_us, figures.dirty_limit_ring_full_us) == (12, 34)
    assert decode_figures({}) == Figures()


@pytest.mark.parametrize("version", transcripts.VERSIONS)
@pytest.mark.parametrize("key", ["multifd-bytes", "precopy-bytes", "dirty-sync-missed-zero-copy"])
def test_a_figure_that_is_missing_is_not_taken_for_none(version, key):
    broken = copy.deepcopy(reply(version, "query-migrate-multifd.source"))
    del broken["ram"][key]

    with pytest.raises(NotUnderstood, match=key):
        decode_figures(broken)
