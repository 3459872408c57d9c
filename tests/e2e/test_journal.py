"""The coordinator's journal is lost, or put back from an older copy: no guest moves by it, and what agents hold ends."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from ferry.agent.v1 import migration_pb2 as agent_pb
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import Move, State, Where, Whole, wishes
from tests.e2e.steps import Steps
from tests.e2e.waiting import until_equal

SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)


def journal_files(lab: Lab) -> list[Path]:
    return sorted((lab.fleet.directory / "coordinator").glob("journal.db*"))


async def lose_journal(lab: Lab) -> None:
    """Kill the coordinator, remove its journal, and start it again."""
    await lab.kill("coordinator")
    for path in journal_files(lab):
        path.unlink()
    await lab.restart("coordinator")


async def copy_journal(lab: Lab) -> Path:
    """Copy the journal as a backup does, with the coordinator stopped for a moment."""
    copy = lab.directory / "journal"
    copy.mkdir()
    await lab.kill("coordinator")
    for path in journal_files(lab):
        shutil.copy(path, copy)
    await lab.restart("coordinator")
    return copy


async def put_back(lab: Lab, copy: Path) -> None:
    """Kill the coordinator and give it the older journal."""
    await lab.kill("coordinator")
    for path in journal_files(lab):
        path.unlink()
    shutil.copytree(copy, lab.fleet.directory / "coordinator", dirs_exist_ok=True)
    await lab.restart("coordinator")


async def forget_all(lab: Lab) -> None:
    """Let both agents have forgotten every migration, as after fifty more."""
    for host in ("host-a", "host-b"):
        await lab.kill(f"agent-{host[-1]}")
        for path in (lab.fleet.directory / host / "sessions").glob("*.json"):
            path.unlink()
        await lab.restart(f"agent-{host[-1]}")
    await lab.wait_reachable()


async def taken_up(lab: Lab, move: Move) -> Whole:
    """Return the outcome of a migration that the coordinator has to find at the agents first."""

    async def is_known() -> bool:
        done = await asyncio.to_thread(lab.fleet.ferry, "migration", "show", move.id)
        return done.returncode == 0

    await until_equal(is_known, wanted=True, timeout_s=40.0)
    return await move.outcome()


async def sides(lab: Lab, host: str) -> list[agent_pb.Migration]:
    return list((await lab.agents[host].ListMigrations(agent_pb.ListMigrationsRequest())).migrations)


async def assert_tidy(lab: Lab, guest: Guest, host: str) -> None:
    """Fail unless the guest runs on one host alone, whole, with no lock, and doctor finds nothing."""
    await lab.assert_only_on(host, guest)
    await guest.console.wait_sweeps(1)
    guest.assert_whole()
    found = await asyncio.to_thread(lab.fleet.ferry, "doctor")
    assert "migration-without-coordinator" not in found.stdout


async def start_slow(lab: Lab) -> tuple[Guest, Move]:
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    return guest, move


@pytest.mark.parametrize("are_forgotten", [False, True], ids=["remembered", "forgotten"])
async def test_an_older_journal_moves_nobody_and_tells_what_agents_know(are_forgotten, lab: Lab):
    guest, move = await start_slow(lab)
    copy = await copy_journal(lab)  # the move is under way in it
    await lab.update_until_accepted(move, bandwidth_mib_s=0)
    assert (await move.outcome()).state == State.STATE_SUCCEEDED
    back = await lab.start_move(to="host-a")
    assert (await back.outcome()).state == State.STATE_SUCCEEDED
    if are_forgotten:
        await forget_all(lab)
    known = {host: {side.id for side in await sides(lab, host)} for host in ("host-a", "host-b")}
    since_s = now_s()

    await put_back(lab, copy)
    outcome = await move.outcome()

    if are_forgotten:
        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
        assert outcome.error_reason == "MIGRATION_FORGOTTEN"
    else:
        assert (outcome.state, outcome.guest_location) == (State.STATE_SUCCEEDED, Where.GUEST_LOCATION_DESTINATION)
    assert {host: {side.id for side in await sides(lab, host)} for host in known} == known
    guest.assert_no_gap(0.5, since_s)
    await assert_tidy(lab, guest, "host-a")


@pytest.mark.parametrize("phase", ["Transferring", pytest.param("Sent", marks=pytest.mark.matrix), "HandedOver"])
async def test_a_journal_that_is_lost_during_a_move_is_not_missed(phase, lab: Lab):
    guest, move = await start_slow(lab)
    if phase == "Transferring":
        await lose_journal(lab)
        await move.hasten()
    elif phase == "Sent":
        with frozen(lab.fleet.pid("agent-b")):
            await move.hasten()
            await move.wait_source_phase("Sent")
            await lose_journal(lab)
    else:
        await lab.kill("coordinator")
        await move.hasten()
        await move.wait_source_phase("HandedOver")
        await lose_journal(lab)
    outcome = await taken_up(lab, move)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert (outcome.source_host, outcome.destination_host) == ("host-a", "host-b")
    await assert_tidy(lab, guest, "host-b")
    again = await lab.start_move(to="host-a")
    assert (await again.outcome()).state == State.STATE_SUCCEEDED


@pytest.mark.matrix  # it is left alone for 20 s
@pytest.mark.parametrize("is_prepared", [False, True])
async def test_what_was_only_begun_for_a_coordinator_that_forgot_it_is_undone(is_prepared, lab: Lab):
    guest = await lab.start_guest()
    steps = Steps(lab)
    await (steps.begin_and_prepare() if is_prepared else steps.begin())
    await lose_journal(lab)

    move = Move(steps.migration_id, lab.coordinator, lab.agents["host-a"], lab.agents["host-b"])
    await move.wait_source_phase("Kept", timeout_s=40.0)

    if is_prepared:
        outcome = await taken_up(lab, move)
        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
        assert outcome.error_reason == "MIGRATION_FORGOTTEN"
    await assert_tidy(lab, guest, "host-a")


async def test_doctor_names_a_side_that_no_coordinator_drives_and_its_command_works(lab: Lab):
    guest, move = await start_slow(lab)
    await lab.kill("coordinator")
    await move.hasten()
    await move.wait_source_phase("HandedOver")

    for host, phase in (("host-b", "Finished"), ("host-a", "Retired")):
        address = lab.fleet.agent_address(host)
        found = await asyncio.to_thread(lab.fleet.ferry, "doctor", "--host", address, "-o", "json")
        (finding,) = [one for one in json.loads(found.stdout) if one["kind"] == "MIGRATION_WITHOUT_COORDINATOR"]
        assert found.returncode == 1
        assert (finding["vm_name"], finding["name"]) == (guest.name, move.id)
        command = finding["advice"].partition(": ferry ")[2].split()
        done = await asyncio.to_thread(lab.fleet.ferry, *command)
        assert done.returncode == 0, done.stderr
        (side,) = [one for one in await sides(lab, host) if one.id == move.id]
        assert side.phase == phase
    await lab.undefine("host-a", guest.name)
    await lab.restart("coordinator")

    assert (await move.outcome()).state == State.STATE_SUCCEEDED
    await assert_tidy(lab, guest, "host-b")
