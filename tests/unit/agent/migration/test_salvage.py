"""What becomes of a half whose record cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.machine import Cause
from agent.migration.order import Options, Role
from agent.migration.record import Facts, Record
from agent.migration.remains import Remains, remains_of
from agent.migration.salvage import Sight, destination_record, source_record
from agent.qemu.status import MigrationStatus, RunState
from agent.vm.stored import Stored

CAUSE = Cause("cannot be read", "RECORD_BROKEN")
VM_UUID = UUID("b3a1fd0e-8b4f-4d13-a2c5-1f8a8f4b2f10")
FACTS = Facts(
    "m-1", Role.SOURCE, str(VM_UUID), "web", Options(), 3, 1.0, token="ab" * 32, peer="host-b", peer_address="192.0.2.2:7701"
)
GONE = Sight()
ACTIVE = Sight(MigrationStatus.ACTIVE, RunState.RUNNING)
SENT = Sight(MigrationStatus.COMPLETED, RunState.POSTMIGRATE)
ARRIVED_BEFORE = Sight(MigrationStatus.COMPLETED, RunState.RUNNING)


def content(phase: out.Phase | inc.Phase, role: Role = Role.SOURCE) -> bytes:
    """Give a record as it lies on disk."""
    body = Record(replace(FACTS, role=role), phase).to_json()
    return json.dumps({"kind": "session", "version": 1, "body": body}).encode()


def with_changed(phase: out.Phase | inc.Phase, change: Callable[[dict[str, dict[str, object]]], object]) -> Remains:
    """Read what is left of a record with a change in its body."""
    envelope = json.loads(content(phase))
    change(envelope["body"])
    return remains_of(json.dumps(envelope).encode())


def facts_of(remains: Remains, role: Role = Role.SOURCE) -> Facts:
    return remains.facts_of("m-1", role, VM_UUID, "web", 5.0)


@pytest.mark.parametrize("left", range(0, 3000, 97))
def test_a_record_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(left: int):
    whole = content(out.Sent())

    remains = remains_of(whole[:left])

    assert remains.role in {Role.SOURCE, None}
    assert remains.source_phase() in {out.Sent(), None}
    assert facts_of(remains).token in {FACTS.token, ""}


def test_the_head_is_enough_to_go_on_with():
    whole = content(out.Sent())
    remains = remains_of(whole[: whole.index(b'"facts"')])

    facts = facts_of(remains)

    assert (remains.vm_uuid, remains.source_phase()) == (VM_UUID, out.Sent())
    assert (facts.token, facts.peer_address, facts.epoch) == (FACTS.token, FACTS.peer_address, 3)


def test_one_fact_that_cannot_be_read_costs_no_other():
    remains = with_changed(out.Switching(), lambda body: body["facts"].update(options=7, warnings="none"))

    facts = facts_of(remains)

    assert (facts.options, facts.warnings, facts.peer) == (Options(), (), "host-b")


@pytest.mark.parametrize("junk", [b"", b"\0" * 50, b"[" * 100_000, b"7", b'{"body": 7}', "\u00e4".encode("latin-1")])
def test_of_what_is_no_record_nothing_is_read(junk: bytes):
    assert remains_of(junk) == Remains()


@pytest.mark.parametrize("phase", [out.Transferring(), out.Connecting(), out.Settling(), out.Leaving()])
def test_before_the_decision_a_transfer_under_way_is_cancelled_in_qemu(phase: out.Phase):
    remains = remains_of(content(phase))

    record = source_record(remains, facts_of(remains), ACTIVE, CAUSE)

    assert record.phase == out.Cancelling(CAUSE, was_switching=True)
    assert record.facts.timeline.started_at_s is not None


def test_a_guest_of_which_nothing_was_sent_yet_is_kept():
    remains = remains_of(content(out.Begun()))

    assert source_record(remains, facts_of(remains), ARRIVED_BEFORE, CAUSE).phase == out.Keeping(CAUSE)


@pytest.mark.parametrize(
    "phase", [out.Switching(), out.Crossing(), out.Following(), out.Broken(), out.Sent(), out.HandedOver(), out.Retiring()]
)
def test_after_the_decision_it_goes_on(phase: out.Phase):
    remains = remains_of(content(phase))

    assert source_record(remains, facts_of(remains), SENT, CAUSE).phase == phase


def test_a_switch_over_that_nobody_could_complete_is_stopped():
    remains = with_changed(out.Switching(), lambda body: (body.pop("head"), body["facts"].update(token=7)))

    assert isinstance(source_record(remains, facts_of(remains), ACTIVE, CAUSE).phase, out.Cancelling)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (ACTIVE, out.Cancelling),
        (Sight(MigrationStatus.PRE_SWITCHOVER, RunState.FINISH_MIGRATE), out.Cancelling),
        (SENT, out.Sent),
        (Sight(MigrationStatus.POSTCOPY_ACTIVE, RunState.FINISH_MIGRATE), out.Following),
        (Sight(MigrationStatus.POSTCOPY_PAUSED, RunState.FINISH_MIGRATE), out.Broken),
        (Sight(MigrationStatus.FAILED, RunState.RUNNING), out.Keeping),
        (Sight(MigrationStatus.NONE, RunState.RUNNING), out.Keeping),
        (GONE, out.Sent),
    ],
)
def test_where_the_phase_cannot_be_read_qemu_tells(seen: Sight, wanted: type):
    remains = with_changed(out.Sent(), lambda body: (body["phase"].update(name="Teleporting"), body["head"].update(phase="T")))

    phase = source_record(remains, facts_of(remains), seen, CAUSE).phase

    assert type(phase) is wanted


@pytest.mark.parametrize(
    ("phase", "seen", "wanted"),
    [
        (inc.Reserved(), GONE, inc.Undoing),
        (inc.Loading(), Sight(MigrationStatus.ACTIVE, RunState.INMIGRATE), inc.Undoing),
        (inc.Loading(), Sight(MigrationStatus.POSTCOPY_ACTIVE, RunState.PAUSED), inc.Arrived),
        (inc.Loading(), Sight(MigrationStatus.COMPLETED, RunState.PAUSED), inc.Loaded),
        (inc.Loaded(), Sight(MigrationStatus.COMPLETED, RunState.PAUSED), inc.Loaded),
        (inc.Resuming(keep_paused=False), Sight(MigrationStatus.COMPLETED, RunState.PAUSED), inc.Resuming),
        (inc.Running(), Sight(MigrationStatus.COMPLETED, RunState.RUNNING), inc.Running),
        (None, Sight(MigrationStatus.COMPLETED, RunState.RUNNING), inc.Running),
        (None, Sight(MigrationStatus.POSTCOPY_ACTIVE, RunState.RUNNING), inc.Filling),
        (None, Sight(MigrationStatus.COMPLETED, RunState.PAUSED), inc.Loaded),
        (None, GONE, inc.Lost),
    ],
)
def test_a_destination_gives_up_only_a_guest_that_is_not_there(phase: inc.Phase | None, seen: Sight, wanted: type):
    remains = Remains() if phase is None else remains_of(content(phase, Role.DESTINATION))

    record = destination_record(remains, facts_of(remains, Role.DESTINATION), seen, CAUSE)

    assert type(record.phase) is wanted
    assert CAUSE.text in record.facts.warnings


def test_a_destination_that_does_not_know_what_to_store_stores_what_runs():
    remains = Remains()

    record = destination_record(
        remains, facts_of(remains, Role.DESTINATION), Sight(MigrationStatus.COMPLETED, RunState.RUNNING), CAUSE
    )

    assert record.facts.stored == Stored()
    assert record.facts.guest_ran
