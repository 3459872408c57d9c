"""The file system that a server keeps its records on is full: no guest stands still, nothing is lost, and it goes on with room."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.errors import WrongState
from deploy.lab.fleet import Fleet
from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab, now_s, refused
from tests.e2e.move import State, Where, wishes
from tests.e2e.small_disks import Filler, small_fleet
from tests.e2e.steps import steps
from tests.e2e.waiting import until, until_equal

pytestmark = pytest.mark.root

MARGIN_S = 2.0
SLOW = wishes(bandwidth_mib_s=2)
BUSY = Plan(dirty_mib_s=1.0)
# Writes faster than the move is allowed to send, however long the agent takes to start.
ENDLESS = Plan(dirty_mib_s=8.0)


@pytest.fixture(scope="module")
def _small() -> Iterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    try:
        with small_fleet(directory) as fleet:
            yield fleet
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def disks(_small: Fleet) -> Iterator[Filler]:
    """Give what fills the file systems; they have room again after the test."""
    filler = Filler(_small)
    yield filler
    filler.free_all()


@pytest.fixture
async def small_lab(_small: Fleet, disks: Filler) -> AsyncIterator[Lab]:
    """Give a lab on a fleet with small file systems."""
    directory = Path(tempfile.mkdtemp(dir=_small.directory))
    async with Lab(_small, directory) as lab:
        try:
            yield lab
        finally:
            disks.free_all()
        for name in ("agent-a", "agent-b", "coordinator"):
            assert _small.processes[name].is_running
            log = _small.processes[name].log_path.read_text()
            assert "Traceback" not in log
            assert '"bug"' not in log
        await lab.tidy()


@pytest.mark.parametrize("full", ["host-a", "host-b", "coordinator"])
async def test_a_move_that_cannot_be_put_on_record_is_refused_with_the_path(full, small_lab: Lab, disks: Filler):
    lab = small_lab
    guest = await lab.start_guest(plan=BUSY)
    since_s = now_s()
    disks.fill(full)

    if full == "coordinator":
        with refused("NO_SPACE", f"{lab.fleet.directory}/coordinator/journal.db"):
            await lab.start_move()
    else:
        outcome = await (await lab.start_move()).outcome()
        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
        assert outcome.error_reason == "NO_SPACE", outcome.error
        assert f"{lab.fleet.directory}/{full}/" in outcome.error
    disks.free(full)
    again = await (await lab.start_move()).outcome()

    assert again.state == State.STATE_SUCCEEDED, again.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize("full", ["host-a", "host-b", "coordinator"])
async def test_a_move_that_goes_on_while_it_is_full_ends_when_there_is_room(full, small_lab: Lab, disks: Filler):
    lab = small_lab
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    since_s = now_s()

    disks.fill(full)
    await lab.update_until_accepted(move, bandwidth_mib_s=0)
    if full == "coordinator":
        await lab.wait_vms("host-a")
    else:
        told = await move.wait(lambda whole: "no space left" in whole.error, "what it waits for", timeout_s=40)
        assert (told.state, told.guest_location) == (State.STATE_WAITING, Where.GUEST_LOCATION_DESTINATION)
    await guest.console.wait_ticks(20)
    disks.free(full)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-b", guest)
    await lab.restart("coordinator")
    assert (await move.outcome()).state == State.STATE_SUCCEEDED
    guest.assert_whole()


async def test_an_agent_that_is_started_again_while_it_is_full_goes_on(small_lab: Lab, disks: Filler):
    lab = small_lab
    guest = await lab.start_guest(plan=ENDLESS)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    since_s = now_s()

    disks.fill("host-a")
    await lab.kill("agent-a")
    await lab.restart("agent-a")
    await lab.wait_reachable()
    await move.wait_source_phase("Transferring")
    await move.cancel()
    outcome = await move.outcome()
    disks.free("host-a")

    assert (outcome.state, outcome.guest_location) == (State.STATE_CANCELLED, Where.GUEST_LOCATION_SOURCE), outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_guest_that_was_cancelled_while_it_is_full_is_free_at_once_and_on_record_later(small_lab: Lab, disks: Filler):
    lab = small_lab
    guest = await lab.start_guest(plan=BUSY)
    async with steps(lab, SLOW) as by_hand:
        await by_hand.begin_and_prepare()
        disks.fill("host-a")
        half = await by_hand.perform()
        assert (half.phase, half.error_reason) == ("Kept", "NO_SPACE"), half.error
        await until_equal(lambda: lab._job("host-a", "web"), "")
        disks.free("host-a")
        record = lab.fleet.directory / "host-a" / "sessions" / f"{by_hand.migration_id}.json"
        await until(lambda: '"Kept"' in record.read_text(), "an end on record")
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_definition_that_cannot_be_stored_is_refused_with_the_path(small_lab: Lab, disks: Filler):
    lab = small_lab
    disks.fill("host-a")

    with pytest.raises(WrongState) as caught:
        await lab.define("host-a", domain(Plan(), lab.directory))

    assert caught.value.reason == "NO_SPACE"
    assert f"{lab.fleet.directory}/host-a/vms/" in caught.value.text
    assert await lab.vms("host-a") == {}
