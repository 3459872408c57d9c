"""The network goes silent in post-copy, in namespaces: the guest waits, the connection is given up and made anew."""

from __future__ import annotations

import pytest

from deploy.lab.network import TwoHosts
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, post_copy
from tests.e2e.test_post_copy import hurry
from tests.e2e.test_silent_network import silenced

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("network")]

PLAN = Plan(megabytes=24, dirty_mib_s=40.0, sweeps_per_s=2.0)
# Longer than the limit of the stall.
SILENT_S = 30.0


@pytest.mark.parametrize("way", [pytest.param("plain", marks=pytest.mark.matrix), "psk", "tunnel"])
async def test_a_network_that_goes_silent_in_post_copy_is_given_up_and_the_move_ends_when_it_is_back(
    way, lab_apart: Lab, network: TwoHosts
):
    lab = lab_apart
    guest = await lab.start_guest(plan=PLAN)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=16, post_copy=post_copy(bandwidth_mib_s=2)))
    await move.wait_destination_phase("Filling")
    await move.wait_source_phase("Following")

    with silenced(network, "host-b"):
        half = await move.wait_source(lambda half: half.phase == "Broken" and half.waiting_for, "Broken", timeout_s=SILENT_S)
    await hurry(move)
    outcome = await move.outcome(timeout_s=90)

    assert "waits for memory that is still on host-a" in half.waiting_for
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
