"""Servers are killed and started again while disks are copied: one guest, with every write, where the result says."""

from __future__ import annotations

import pytest

from tests.e2e.disk_stages import DiskMove, Stage, start_disk_move
from tests.e2e.lab import Lab
from tests.e2e.move import State, Where

pytestmark = pytest.mark.timeout(120)

FAILED = State.STATE_FAILED
MARGIN_S = 2.3
STAGES = [Stage.COPYING, pytest.param(Stage.SENDING, marks=pytest.mark.matrix)]


async def assert_as_told(moving: DiskMove) -> None:
    """Fail unless one guest runs, with all of its writes, on the host that the outcome names, and nothing is left."""
    outcome = await moving.move.outcome(timeout_s=60)
    if outcome.state == State.STATE_SUCCEEDED:
        assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
        await moving.assert_arrived()
    else:
        assert outcome.state == FAILED, outcome.error
        assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
        assert outcome.error_reason
        await moving.assert_as_before()
        await moving.assert_moves_now()


@pytest.mark.parametrize(
    ("server", "way"),
    [
        ("agent-a", "psk"),
        *(
            pytest.param(server, way, marks=pytest.mark.matrix)
            for server, way in (
                ("agent-b", "psk"),
                ("coordinator", "psk"),
                ("agent-a", "tunnel"),
                ("agent-b", "tunnel"),
                ("coordinator", "tunnel"),
            )
        ),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
async def test_a_server_that_is_killed_takes_the_copies_up_again(server, way, stage, lab_watched: Lab):
    lab = lab_watched
    moving = await start_disk_move(lab, stage, way)
    await moving.reach()

    await lab.kill(server)
    await moving.guest.console.wait_written(50, disk=1)
    await lab.restart(server)
    await lab.wait_reachable()
    await lab.update_until_accepted(moving.move, bandwidth_mib_s=0, disk_bandwidth_mib_s=0)
    outcome = await moving.move.outcome(timeout_s=60)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await moving.assert_arrived()
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)


@pytest.mark.matrix
@pytest.mark.parametrize("way", ["psk", "tunnel"])
@pytest.mark.parametrize("server", ["agent-a", "agent-b", "coordinator"])
async def test_a_server_that_is_killed_before_the_copies_are_settled_leaves_one_guest(server, way, lab_watched: Lab):
    lab = lab_watched
    moving = await start_disk_move(lab, Stage.SETTLING, way)
    async with moving.stopped_for_settling():
        await lab.kill(server)
        if server == "agent-a":
            await lab.restart(server)
    if server != "agent-a":
        await lab.restart(server)
    await lab.wait_reachable()

    await assert_as_told(moving)


@pytest.mark.matrix
@pytest.mark.parametrize("server", ["tunnel-a", "tunnel-b"])
@pytest.mark.parametrize("stage", [Stage.COPYING, Stage.SENDING])
async def test_a_tunnel_that_is_killed_fails_the_move_and_not_the_guests_writes(server, stage, lab_watched: Lab):
    lab = lab_watched
    moving = await start_disk_move(lab, stage, "tunnel")
    await moving.reach()

    await lab.kill(server)
    await moving.move.wait_source_phase("Kept")

    assert moving.guest.console.max_write_gap_s(1, moving.since_s) < MARGIN_S
    moving.guest.assert_no_gap(MARGIN_S, moving.since_s)
    await lab.restart(server)
    await assert_as_told(moving)


@pytest.mark.matrix
@pytest.mark.parametrize("server", ["tunnel-a", "tunnel-b"])
async def test_a_tunnel_that_is_killed_before_the_copies_are_settled_gives_the_guest_back(server, lab_watched: Lab):
    lab = lab_watched
    moving = await start_disk_move(lab, Stage.SETTLING, "tunnel")
    async with moving.stopped_for_settling():
        await lab.kill(server)
    await moving.move.wait_source_phase("Kept")
    await lab.restart(server)

    await assert_as_told(moving)
