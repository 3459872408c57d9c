"""What a half remembers survives being written and read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.migration import incoming, outgoing
from agent.migration.machine import Cause
from agent.migration.order import Options, Role
from agent.migration.progress import Era, Timeline
from agent.migration.record import Facts, Record, check_migration_id, find_cause, incoming_record, outgoing_record, read_role
from common.errors import InvalidRequest

CAUSE = Cause("why", "WHY", by_wish=True)


def facts(role: Role) -> Facts:
    timeline = Timeline(started_at_s=1.0, pass_at_s=(1.5, 2.5), stopped_at_s=3.0)
    return Facts("m-1", role, "uuid", "web", Options(pause=True), epoch=2, began_at_s=0.5, token="ab", timeline=timeline)


@pytest.mark.parametrize(
    "phase",
    [outgoing.Begun(), outgoing.Sent(qemu_is_gone=True), outgoing.Cancelling(CAUSE, was_switching=True), outgoing.Kept(CAUSE)],
)
def test_a_source_half_is_read_back_as_it_was_written(phase: outgoing.Phase):
    record = Record(facts(Role.SOURCE), phase)

    body = json.loads(json.dumps(record.to_json()))

    assert read_role(body) is Role.SOURCE
    assert outgoing_record(body) == record


@pytest.mark.parametrize("phase", [incoming.Listening(), incoming.Resuming(keep_paused=True), incoming.Lost(CAUSE)])
def test_a_destination_half_is_read_back_as_it_was_written(phase: incoming.Phase):
    record = Record(facts(Role.DESTINATION), phase)

    body = json.loads(json.dumps(record.to_json()))

    assert read_role(body) is Role.DESTINATION
    assert incoming_record(body) == record


def test_a_phase_of_the_other_half_is_refused():
    body = Record(facts(Role.SOURCE), incoming.Loading()).to_json()

    with pytest.raises(InvalidRequest, match="not a phase of a source"):
        outgoing_record(body)


def test_a_phase_tells_its_cause_if_it_has_one():
    assert find_cause(outgoing.Kept(CAUSE)) == CAUSE
    assert find_cause(outgoing.Begun()) is None


@pytest.mark.parametrize("text", ["", "-a", "a/b", "a.b", "../x", "a" * 65, "ä", "a\n"])
def test_an_id_that_could_be_a_path_is_refused(text: str):
    with pytest.raises(InvalidRequest):
        check_migration_id(text)


def test_the_legs_of_the_downtime_add_up_to_it():
    line = Timeline(stopped_at_s=10.0, continued_at_s=10.002, completed_at_s=10.030, resumed_at_s=10.040, ran_for_s=0.004)

    legs = {leg.name: leg.duration_s for leg in line.downtime_legs()}

    assert legs == pytest.approx({"stop": 0.002, "device": 0.028, "resume": 0.006})
    assert sum(legs.values()) == pytest.approx(0.036)


def test_there_is_no_downtime_before_the_guest_runs_again():
    assert Timeline(stopped_at_s=10.0, completed_at_s=10.1).downtime_legs() == ()


def test_instants_of_this_boot_are_compared_as_they_are_however_the_wall_clock_was_set():
    known = replace(facts(Role.SOURCE), era=Era("boot-1", ahead_s=1000.0), broken_since_s=2.0)

    assert known.in_era(Era("boot-1", ahead_s=-171_800.0)) == replace(known, era=Era("boot-1", ahead_s=-171_800.0))


def test_instants_of_an_earlier_boot_or_of_an_older_agent_are_moved_by_the_wall_clock():
    line = Timeline(started_at_s=1001.0, pass_at_s=(1001.5,), stopped_at_s=1003.0)
    known = replace(facts(Role.SOURCE), era=Era("boot-1", ahead_s=500.0), timeline=line)
    older = replace(known, era=Era())

    assert known.in_era(Era("boot-2", ahead_s=1500.0)).timeline == line.shifted(-1000.0)
    assert older.in_era(Era("boot-2", ahead_s=1000.0)).timeline.stopped_at_s == 3.0
