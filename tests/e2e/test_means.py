"""A busy guest is moved by every means of RAM migration that this machine has, and what one side lacks is refused beforehand."""

from __future__ import annotations

import pytest

from ferry.common.v1 import means_pb2 as means_pb
from ferry.common.v1 import migration_pb2 as common_pb
from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Whole, wishes

PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
MIB = 1 << 20
CACHE_BYTES = 8 * MIB

ZLIB = means_pb.Means(compression=means_pb.COMPRESSION_ZLIB)
ZSTD = means_pb.Means(compression=means_pb.COMPRESSION_ZSTD)
ZSTD_3 = means_pb.Means(compression=means_pb.COMPRESSION_ZSTD, compression_level=3)
XBZRLE = means_pb.Means(xbzrle_cache_bytes=CACHE_BYTES)
AUTO_CONVERGE = means_pb.Means(auto_converge=means_pb.AutoConverge(initial_percent=30, increment_percent=20))
ZERO_COPY = means_pb.Means(zero_copy=True)


async def _there(lab: Lab, pair: tuple[str, str], options: common_pb.MigrationOptions, *, dirty_mib_s: float = 8.0) -> Whole:
    """Move a busy guest from the first QEMU to the second, and prove its memory."""
    first, second = ("host-b", "host-a") if pair == ("10.0", "7.2") else ("host-a", "host-b")
    for version in pair:
        require(version)
    emulator = require(pair[0]) if pair[0] == pair[1] else ""
    machine = "pc-q35-10.0" if pair == ("10.0", "10.0") else "pc-q35-7.2"
    guest = await lab.start_guest(first, Plan(emulator=emulator, machine=machine, dirty_mib_s=dirty_mib_s))
    move = await lab.start_move(guest.name, second, options, source=first)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on(second, guest)
    guest.assert_whole()
    return outcome


@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("means", [ZLIB, ZSTD], ids=["zlib", "zstd"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_compressed_channels_bring_a_busy_guest_over_whole(pair, means, way, lab: Lab):
    outcome = await _there(lab, pair, WAYS[way](multifd=2, means=means))

    assert outcome.progress.figures.multifd_bytes > 0


@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_differences_of_pages_bring_a_busy_guest_over_whole(pair, way, lab: Lab):
    outcome = await _there(lab, pair, WAYS[way](means=XBZRLE))

    assert outcome.progress.figures.xbzrle.cache_size_bytes == CACHE_BYTES


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_a_guest_that_dirties_more_than_is_sent_is_slowed_and_comes_over_whole(pair, lab: Lab):
    options = wishes(means=AUTO_CONVERGE, bandwidth_mib_s=16)

    outcome = await _there(lab, pair, options, dirty_mib_s=48.0)

    assert outcome.progress.throttle_percent >= AUTO_CONVERGE.auto_converge.initial_percent


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_memory_that_is_sent_without_a_copy_comes_over_whole(pair, lab: Lab):
    await _there(lab, pair, wishes(plain=True, multifd=2, means=ZERO_COPY))
