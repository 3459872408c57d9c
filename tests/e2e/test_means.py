"""A busy guest is moved by every means of RAM migration that this machine has, and what one side lacks is refused beforehand."""

from __future__ import annotations

import asyncio
import json

import pytest

from ferry.common.v1 import means_pb2 as means_pb
from ferry.common.v1 import migration_pb2 as common_pb
from tests.e2e.binaries import emulator_of, machine_of, require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Whole, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.steps import steps
from tests.e2e.tables import cases, in_turn, one_each

PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
MIB = 1 << 20
CACHE_BYTES = 8 * MIB

BY = ("plain", "psk", "tunnel")
ZSTD = means_pb.Means(compression=means_pb.COMPRESSION_ZSTD)
ZSTD_3 = means_pb.Means(compression=means_pb.COMPRESSION_ZSTD, compression_level=3)
COMPRESSED = {"zlib": means_pb.Means(compression=means_pb.COMPRESSION_ZLIB), "zstd": ZSTD}
XBZRLE = means_pb.Means(xbzrle_cache_bytes=CACHE_BYTES)
AUTO_CONVERGE = means_pb.Means(auto_converge=means_pb.AutoConverge(initial_percent=80, increment_percent=10))
ZERO_COPY = means_pb.Means(zero_copy=True)


async def _there(lab: Lab, pair: tuple[str, str], options: common_pb.MigrationOptions, *, dirty_mib_s: float = 8.0) -> Whole:
    """Move a busy guest from the first QEMU to the second, and prove its memory."""
    guest = await lab.start_guest(plan=Plan(emulator=emulator_of(pair), machine=machine_of(pair), dirty_mib_s=dirty_mib_s))
    move = await lab.start_move(options=options)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
    return outcome


@cases(("pair", "means", "way"), (PAIRS, tuple(COMPRESSED), BY), in_turn(PAIRS, tuple(COMPRESSED), BY))
async def test_compressed_channels_bring_a_busy_guest_over_whole(pair, means, way, lab: Lab):
    outcome = await _there(lab, pair, WAYS[way](multifd=2, means=COMPRESSED[means]))

    assert outcome.progress.figures.multifd_bytes > 0


@cases(("pair", "way"), (PAIRS, BY), one_each(PAIRS, BY))
async def test_differences_of_pages_bring_a_busy_guest_over_whole(pair, way, lab: Lab):
    outcome = await _there(lab, pair, WAYS[way](means=XBZRLE))

    assert outcome.progress.figures.xbzrle.cache_size_bytes == CACHE_BYTES


@cases(("pair", "way"), (PAIRS, BY), one_each(PAIRS[:2], ("psk",)))
async def test_a_guest_that_dirties_more_than_is_sent_is_slowed_and_comes_over_whole(pair, way, lab: Lab):
    options = WAYS[way](means=AUTO_CONVERGE, bandwidth_mib_s=6)

    outcome = await _there(lab, pair, options, dirty_mib_s=24.0)

    assert outcome.progress.throttle_percent >= AUTO_CONVERGE.auto_converge.initial_percent


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_memory_that_is_sent_without_a_copy_comes_over_whole(pair, lab: Lab):
    await _there(lab, pair, wishes(plain=True, multifd=2, means=ZERO_COPY))


# host-a runs QEMU 7.2 and host-b 10.0.
REFUSED = {
    "level": (
        wishes(multifd=2, means=ZSTD_3),
        "host-b",
        "CAPABILITY_MISSING",
        ("multifd-zstd-level", "source host-a", "stays at 1"),
    ),
    "qpl": (
        wishes(multifd=2, means=means_pb.Means(compression=means_pb.COMPRESSION_QPL)),
        "host-b",
        "CAPABILITY_MISSING",
        ("multifd-compression=qpl", "source host-a", "QEMU 7.2"),
    ),
    "switch-over bandwidth, source": (
        wishes(means=means_pb.Means(switchover_bandwidth_bytes_per_second=MIB)),
        "host-b",
        "CAPABILITY_MISSING",
        ("avail-switchover-bandwidth", "source host-a", "QEMU 7.2"),
    ),
    "switch-over bandwidth, destination": (
        wishes(means=means_pb.Means(switchover_bandwidth_bytes_per_second=MIB)),
        "host-a",
        "CAPABILITY_MISSING",
        ("avail-switchover-bandwidth", "destination host-a", "QEMU 7.2"),
    ),
    "dirty-limit": (
        wishes(means=means_pb.Means(dirty_limit_bytes_per_second=MIB)),
        "host-a",
        "CAPABILITY_MISSING",
        ("dirty-limit", "source host-b", "KVM", "TCG"),
    ),
    "zero-copy, encrypted": (wishes(multifd=2, means=ZERO_COPY), "host-b", "OPTIONS_CONFLICT", ("zero-copy", "encryption")),
    "zero-copy, tunnel": (wishes(tunnel=True, multifd=2, means=ZERO_COPY), "host-b", "OPTIONS_CONFLICT", ("zero-copy", "tunnel")),
    "xbzrle, multifd": (wishes(multifd=2, means=XBZRLE), "host-b", "OPTIONS_CONFLICT", ("multifd", "xbzrle")),
    "compression alone": (wishes(means=ZSTD), "host-b", "OPTIONS_CONFLICT", ("compression needs multifd",)),
    "cache too small": (
        wishes(means=means_pb.Means(xbzrle_cache_bytes=2048)),
        "host-b",
        "OPTION_OUT_OF_RANGE",
        ("xbzrle-cache", "2048", "4096"),
    ),
    "cache too large": (
        wishes(means=means_pb.Means(xbzrle_cache_bytes=1 << 30)),
        "host-b",
        "OPTION_OUT_OF_RANGE",
        ("xbzrle-cache", str(1 << 30)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_one_side_lacks_is_refused_by_the_name_of_that_side(case, lab: Lab):
    require("10.0")
    options, to, reason, words = REFUSED[case]
    guest = await lab.start_guest("host-b" if to == "host-a" else "host-a")

    await assert_refused(lab, guest, reason, *words, to=to, options=options)


async def test_a_level_and_a_bandwidth_for_the_switch_over_are_used_where_both_know_them(lab: Lab):
    means = means_pb.Means(
        compression=means_pb.COMPRESSION_ZSTD, compression_level=3, switchover_bandwidth_bytes_per_second=100 * MIB
    )

    await _there(lab, ("10.0", "10.0"), wishes(multifd=2, means=means))


@pytest.mark.parametrize(("pair", "agreed"), [(PAIRS[0], []), (PAIRS[1], ["switchover-ack"])], ids=["7.2", "10.0"])
async def test_what_both_sides_have_is_agreed_upon(pair, agreed, lab: Lab):
    guest = await lab.start_guest("host-a", Plan(emulator=require(pair[0])))

    async with steps(lab) as by_hand:
        endpoint = (await by_hand.begin_and_prepare()).endpoint

    assert list(endpoint.agreed_capabilities) == ["validate-uuid", *agreed]
    await lab.assert_only_on("host-a", guest)


async def test_the_figures_of_a_move_are_kept_by_both_agents_and_by_the_coordinator(lab: Lab):
    async def ferry(*arguments: str) -> str:
        return (await asyncio.to_thread(lab.fleet.ferry, *arguments, check=True)).stdout

    guest = await lab.start_guest("host-a", Plan(dirty_mib_s=8.0))
    slow = await lab.start_move(guest.name, "host-b", wishes(bandwidth_mib_s=1))
    await slow.wait_transferring()
    running = json.loads(await ferry("vm", "migration-stats", "web", "-o", "json"))
    at_agent = json.loads(await ferry("vm", "migration-stats", "web", "--host", "host-a", "-o", "json"))
    await slow.cancel()
    await slow.outcome()
    move = await lab.start_move(guest.name, "host-b", wishes(means=XBZRLE))
    await move.outcome()
    await lab.kill("agent-a")
    await lab.restart("agent-a")

    ended = json.loads(await ferry("vm", "migration-stats", "web", "--completed", "-o", "json"))
    at_source = json.loads(await ferry("vm", "migration-stats", "web", "--completed", "--host", "host-a", "-o", "json"))
    at_destination = json.loads(await ferry("vm", "migration-stats", "web", "--completed", "--host", "host-b", "-o", "json"))
    shown = await ferry("migration", "show", move.id, "--stats")

    assert [one["id"] for one in running] == [one["id"] for one in at_agent] == [slow.id]
    assert [one["id"] for one in ended][:2] == [one["id"] for one in at_source] == [move.id, slow.id]
    assert [one["phase"] for one in at_source] == ["Retired", "Kept"]
    assert ended[0]["progress"].pop("arrival")  # which the destination tells
    assert at_source[0]["progress"].pop("arrival") is None
    assert at_source[0]["progress"] == ended[0]["progress"]
    assert at_source[0]["progress"]["figures"]["xbzrle"]["cache_size_bytes"] == CACHE_BYTES
    assert (at_destination[0]["id"], at_destination[0]["phase"]) == (move.id, "Finished")
    assert "xbzrle cache" in shown
