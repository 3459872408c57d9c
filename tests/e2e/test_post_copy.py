"""A guest is moved by post-copy: it goes first, the rest of its memory follows, and nothing ends either half meanwhile."""

from __future__ import annotations

import pytest

from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Where, post_copy

PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
MEGABYTES = 24
# Enough for the test to look while memory follows.
POST_COPY_MIB_S = 16.0


def plan_of(pair: tuple[str, str], *, dirty_mib_s: float = 40.0) -> Plan:
    """Make a guest that pre-copy alone would not move at the bandwidth of these tests."""
    emulator = require(pair[0]) if pair[0] == pair[1] else ""
    machine = "pc-q35-10.0" if pair == ("10.0", "10.0") else "pc-q35-7.2"
    return Plan(emulator=emulator, machine=machine, megabytes=MEGABYTES, dirty_mib_s=dirty_mib_s, sweeps_per_s=1.0)


@pytest.mark.parametrize("preempt", [False, True], ids=["", "preempt"])
@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_a_guest_that_writes_faster_than_the_link_is_moved_by_post_copy_whole(pair, way, preempt, lab: Lab):
    first, second = ("host-b", "host-a") if pair == ("10.0", "7.2") else ("host-a", "host-b")
    guest = await lab.start_guest(first, plan_of(pair))
    wished = post_copy(bandwidth_mib_s=POST_COPY_MIB_S, preempt=preempt)

    move = await lab.start_move(guest.name, second, WAYS[way](bandwidth_mib_s=16, post_copy=wished), source=first)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
    assert "Following" in [leg.name for leg in outcome.phases]
    assert outcome.HasField("downtime")
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on(second, guest)
    guest.assert_whole()
