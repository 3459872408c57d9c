"""Modes of a move as they are typed, and what became of the guest as it is shown."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from coordinator.cli.exits import ExitCode
from ferry.common.v1 import modes_pb2 as modes_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import migration

M = pb.Migration


def moved(arrival: modes_pb.Arrival | None = None) -> pb.Migration:
    made = migration(M.STATE_SUCCEEDED, M.GUEST_LOCATION_DESTINATION)
    made.downtime.total.FromMilliseconds(12)
    if arrival is not None:
        made.progress.arrival.CopyFrom(arrival)
    return made


def clock(outcome: modes_pb.ClockSync.Outcome.ValueType, behind_ms: int = 0, error: str = "") -> modes_pb.Arrival:
    told = modes_pb.Arrival(clock=modes_pb.ClockSync(outcome=outcome, error=error))
    told.clock.behind.FromMilliseconds(behind_ms)
    return told


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("--suspend", modes_pb.Modes(suspend=True)),
        ("--announce-rounds 0", modes_pb.Modes(announce_round_count=0)),
        ("--announce-rounds 12", modes_pb.Modes(announce_round_count=12)),
        ("--transient", modes_pb.Modes(persistence=modes_pb.PERSISTENCE_TRANSIENT)),
        (
            "--persistent --keep-source",
            modes_pb.Modes(persistence=modes_pb.PERSISTENCE_PERSISTENT, source_definition=modes_pb.SOURCE_DEFINITION_KEEP),
        ),
        ("--undefine-source", modes_pb.Modes(source_definition=modes_pb.SOURCE_DEFINITION_UNDEFINE)),
        ("--offline --leave-clock", modes_pb.Modes(offline=True, leave_clock=True)),
    ],
)
async def test_modes_travel_as_they_were_typed(fleet, typed, sent):
    fleet.coordinator.story = [moved()]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b", *typed.split())

    assert ended.code is ExitCode.DONE, ended.err
    assert fleet.coordinator.requests[0].options.modes == sent


async def test_without_a_word_of_modes_none_are_sent(fleet):
    fleet.coordinator.story = [moved()]

    await fleet.ferry("migrate", "web", "--to", "host-b")

    assert not fleet.coordinator.requests[0].options.HasField("modes")


@pytest.mark.parametrize("typed", ["--announce-rounds 1001", "--announce-rounds -1", "--announce-rounds x"])
async def test_rounds_out_of_range_are_refused_before_anything_is_asked(fleet, typed):
    ended = await fleet.ferry("migrate", "web", "--to", "host-b", *typed.split())

    assert ended.code is ExitCode.USAGE
    assert not fleet.coordinator.requests


async def test_a_guest_that_stays_paused_is_told_as_such_with_the_way_on(fleet):
    fleet.coordinator.story = [moved(modes_pb.Arrival(is_paused=True, announce_round_count=5, network_card_count=1))]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b", "--suspend")

    assert "web is paused on host-b; let it go on: ferry vm resume web --host host-b" in ended.err
    assert "stood still" not in ended.err
    assert "5 rounds for 1 network card, once it goes on" in ended.out


@pytest.mark.parametrize(
    ("arrival", "shown"),
    [
        (modes_pb.Arrival(announce_round_count=5), "no: the guest has no network card"),
        (modes_pb.Arrival(network_card_count=2), "no: 0 rounds were wished"),
        (modes_pb.Arrival(announce_round_count=1, network_card_count=2), "1 round for 2 network cards"),
        (modes_pb.Arrival(network_gap=modes_pb.NetworkGap(gap=Duration(nanos=42_000_000))), "network gap  42.0 ms"),
        (
            modes_pb.Arrival(network_gap=modes_pb.NetworkGap(why_not="the address is not known")),
            "not measured: the address is not known",
        ),
        (clock(modes_pb.ClockSync.OUTCOME_SET, 1500), "was 1.50 s behind, set by the guest's agent"),
        (clock(modes_pb.ClockSync.OUTCOME_RIGHT, -20), "20.0 ms ahead, left as it was"),
        (clock(modes_pb.ClockSync.OUTCOME_NO_AGENT), "no guest agent answers"),
        (clock(modes_pb.ClockSync.OUTCOME_FAILED, 0, "no answer in 1 s"), "not set: no answer in 1 s"),
    ],
)
async def test_what_became_of_the_guest_is_shown(fleet, arrival, shown):
    fleet.coordinator.story = [moved(arrival)]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b")

    assert shown in ended.out


async def test_an_offline_move_tells_of_a_stopped_vm(fleet):
    made = migration(M.STATE_SUCCEEDED, M.GUEST_LOCATION_DESTINATION)
    made.options.modes.offline = True
    fleet.coordinator.story = [made]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b", "--offline")

    assert ended.err == "web moved from host-a to host-b, stopped as it was\n"


async def test_an_offline_move_that_failed_tells_where_the_definition_is(fleet):
    made = migration(M.STATE_FAILED, error="host-b: no", error_reason="FILE_MISSING")
    made.options.modes.offline = True
    fleet.coordinator.story = [made]

    ended = await fleet.ferry("migrate", "web", "--to", "host-b", "--offline")

    assert "its definition stays on host-a" in ended.err
