"""Guests that write in other patterns, in bursts, sweeps or a small hot set, are moved inside their budget."""

from __future__ import annotations

import pytest

from ferry.common.v1 import post_copy_pb2 as post_copy_pb
from ferry.common.v1.budget_pb2 import POLICY_MUST_FINISH, TIMEOUT_ACTION_POST_COPY
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, post_copy

LINK_MIB_S = 16.0
DURATION_S = 8.0
DOWNTIME_S = 0.3
# The hand-over itself, on a machine that does other things too.
MARGIN_S = 0.3

PATTERNS = {
    # All of what it writes in one tick each second.
    "bursts": Plan(megabytes=32, dirty_mib_s=24.0, period_ms=1000.0, sweeps_per_s=0.5),
    # Everything, again and again, faster than the link.
    "sweeps": Plan(megabytes=32, dirty_mib_s=96.0, sweeps_per_s=0.5),
    # Little memory, rewritten so often that each pass finds all of it changed.
    "hot": Plan(megabytes=6, dirty_mib_s=48.0),
    "hardly": Plan(megabytes=32, dirty_mib_s=0.5),
}


@pytest.mark.parametrize(
    ("pattern", "way"),
    [
        ("bursts", "psk"),
        ("sweeps", "tunnel"),
        ("hot", "plain"),
        *(
            pytest.param(pattern, way, marks=pytest.mark.matrix)
            for pattern, way in [("bursts", "tunnel"), ("sweeps", "psk"), ("hot", "tunnel"), ("hardly", "psk")]
        ),
    ],
)
async def test_must_finish_keeps_its_duration_and_its_downtime_whatever_the_guest_writes(pattern, way, lab: Lab):
    guest = await lab.start_guest(plan=PATTERNS[pattern])
    options = WAYS[way](
        bandwidth_mib_s=LINK_MIB_S,
        max_downtime_s=DOWNTIME_S,
        policy=POLICY_MUST_FINISH,
        max_duration_s=DURATION_S,
        on_timeout=TIMEOUT_ACTION_POST_COPY,
        post_copy=post_copy(post_copy_pb.PostCopy.WHEN_ALLOWED),
    )

    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.progress.elapsed.ToTimedelta().total_seconds() <= DURATION_S
    assert outcome.downtime.total.ToTimedelta().total_seconds() <= DOWNTIME_S + MARGIN_S
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
