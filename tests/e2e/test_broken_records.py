"""Records of a migration that cannot be read: what they stand for stays taken, the guest runs on, a command ends what is held."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ferry.agent.v1 import migration_pb2
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import Move, State, Where, wishes
from tests.e2e.tables import cases

MARGIN_S = 2.0
SLOW = wishes(bandwidth_mib_s=2)
BUSY = Plan(dirty_mib_s=8.0)
TINY = Plan(megabytes=1, dirty_mib_s=0.1)
PATIENT_S = 20.0


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change a record that is JSON."""
    record = json.loads(path.read_text())
    how(record)
    path.write_text(json.dumps(record))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut-off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "wrong-type": lambda path: change(path, lambda record: record["body"]["facts"].update(options=7, epoch="one")),
    "unknown-phase": lambda path: change(path, lambda record: record["body"]["phase"].update(name="Teleporting")),
    "unknown-version": lambda path: change(path, lambda record: record.update(version=99)),
    "empty": lambda path: path.write_bytes(b""),
    "no-json": lambda path: path.write_bytes(b"\0" * 300),
}


def record_of(lab: Lab, move: Move, host: str = "host-a") -> Path:
    """Name the record of a half."""
    return lab.fleet.directory / host / "sessions" / f"{move.id}.json"


def add_unknown(record: dict[str, Any]) -> None:
    """Add fields as a newer version may."""
    record["body"]["facts"]["colour"] = {"of": "the future"}
    record["body"]["facts"]["options"]["haste"] = 3


async def doctor_says(lab: Lab) -> str:
    """Run `ferry doctor`."""
    return (await asyncio.to_thread(lab.fleet.ferry, "doctor", "-o", "json")).stdout


async def test_fields_of_a_newer_version_are_kept_and_written_back(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    await lab.kill("agent-a")
    change(record_of(lab, move), add_unknown)

    await lab.restart("agent-a")
    await move.wait_source_phase("Transferring")
    await lab.update_until_accepted(move, bandwidth_mib_s=0)
    outcome = await move.outcome()
    facts = json.loads(record_of(lab, move).read_text())["body"]["facts"]

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert (facts["colour"], facts["options"]["haste"]) == ({"of": "the future"}, 3)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@cases(("damage",), (tuple(DAMAGES),), [("cut-off",), ("unknown-phase",), ("empty",)])
async def test_before_the_decision_the_transfer_is_stopped_and_the_guest_runs_on(damage, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    since_s = now_s()
    await lab.kill("agent-a")
    DAMAGES[damage](record_of(lab, move))

    await lab.restart("agent-a")
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    assert outcome.error_reason == "RECORD_BROKEN", outcome.error
    assert str(record_of(lab, move)) in outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    again = await (await lab.start_move()).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@cases(("damage",), (tuple(DAMAGES),), [("cut-off",)])
async def test_after_the_decision_it_goes_on_by_what_is_left_or_comes_back(damage, lab: Lab):
    guest = await lab.start_guest(plan=TINY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=0.2, max_downtime_s=PATIENT_S))
    await move.wait_source_phase("Transferring")
    with frozen(await lab.qemu_pid("host-b")):
        await move.update(bandwidth_mib_s=100)
        await move.wait_source_phase("Switching")
        await lab.kill("agent-a")
        DAMAGES[damage](record_of(lab, move))
    await lab.restart("agent-a")

    if damage in ("empty", "no-json"):
        told = await move.wait(lambda whole: whole.state == State.STATE_WAITING, "what it waits for")
        assert told.guest_location == Where.GUEST_LOCATION_SWITCHING
        assert str(record_of(lab, move).with_suffix(".unreadable")) in await doctor_says(lab)
        fence = migration_pb2.FenceMigrationRequest(migration_id=move.id, peer_is_dead=True)
        await lab.agents["host-a"].FenceMigration(fence)
        outcome = await move.outcome()
        assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE), outcome.error
        await lab.assert_only_on("host-a", guest)
    else:
        outcome = await move.outcome()
        hosts = {Where.GUEST_LOCATION_SOURCE: "host-a", Where.GUEST_LOCATION_DESTINATION: "host-b"}
        await lab.assert_only_on(hosts[outcome.guest_location], guest)
    await guest.console.wait_ticks(5)
    guest.assert_whole()


@cases(("damage",), (tuple(DAMAGES),), [("wrong-type",)])
async def test_a_destination_that_cannot_read_its_record_before_the_guest_is_there_undoes_it(damage, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    since_s = now_s()
    await lab.kill("agent-b")
    DAMAGES[damage](record_of(lab, move, "host-b"))

    await lab.restart("agent-b")
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@cases(("damage",), (tuple(DAMAGES),), [("empty",)])
async def test_a_destination_that_cannot_read_its_record_keeps_the_guest_that_runs_there(damage, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=SLOW)
    await move.wait_transferring()
    await lab.kill("coordinator")
    await move.source.UpdateMigration(
        migration_pb2.UpdateMigrationRequest(migration_id=move.id, epoch=1, bandwidth_bytes_per_second=0)
    )
    await move.wait_destination_phase("Running")
    await guest.console.wait_sweeps(1)
    since_s = now_s()
    await lab.kill("agent-b")
    DAMAGES[damage](record_of(lab, move, "host-b"))

    await lab.restart("agent-b")
    await lab.restart("coordinator")
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_SUCCEEDED, Where.GUEST_LOCATION_DESTINATION), outcome.error
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
