"""The tree of a trace."""

from __future__ import annotations

import re

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from coordinator.cli.screen import Screen
from coordinator.cli.spans import parse_traces, tree
from coordinator.cli.trace_tree import draw, spans_plain

MS = 1_000_000


def traces(*spans: tuple[str, str, str, str, int, int]) -> bytes:
    """Serialise (host, id, parent, name, start ms, end ms)."""
    made = TracesData()
    for host, span_id, parent, name, start_ms, end_ms in spans:
        one = made.resource_spans.add()
        for key, value in (("service.name", "ferry-agent"), ("host.name", host)):
            one.resource.attributes.add(key=key).value.string_value = value
        one.scope_spans.add().spans.add(
            span_id=span_id.encode(),
            parent_span_id=parent.encode(),
            name=name,
            start_time_unix_nano=start_ms * MS,
            end_time_unix_nano=end_ms * MS,
        )
    return made.SerializeToString()


# host-b's clock is an hour ahead.
HOUR = 3_600_000
TRACE = traces(
    ("host-a", "m", "", "migration", 1000, 1100),
    ("host-a", "p", "m", "migration.precopy", 1010, 1080),
    ("host-a", "d", "m", "migration.downtime", 1080, 1090),
    ("host-b", "r", "d", "AgentService/ResumeMigration", HOUR + 1085, HOUR + 1088),
    *(("host-a", f"q{index}", "p", "qmp query-migrate", 1010 + index, 1011 + index) for index in range(9)),
)


def names(rows) -> list[str]:
    return [f"{row.lead}{row.first.name} x {len(row.spans)}" for row in rows]


def test_spans_stand_under_their_parents_and_many_alike_are_one_row():
    assert names(tree(parse_traces(TRACE))) == [
        "migration x 1",
        "├─ migration.precopy x 1",
        "│  └─ qmp query-migrate x 9",
        "└─ migration.downtime x 1",
        "   └─ AgentService/ResumeMigration x 1",
    ]


def test_a_span_whose_parent_was_lost_is_a_root():
    rows = tree(parse_traces(traces(("host-a", "x", "gone", "vm.stop", 1, 2))))

    assert names(rows) == ["vm.stop x 1"]


def test_a_span_that_came_twice_counts_once():
    assert len(parse_traces(TRACE + TRACE)) == 13


def test_a_clock_that_is_an_hour_ahead_moves_nothing(capsys):
    Screen().data.print(draw(tree(parse_traces(TRACE))))

    lines = capsys.readouterr().out.splitlines()
    resume = next(line for line in lines if "ResumeMigration" in line)
    assert re.search(r"host-b agent +\+0 s +3.00 ms +▏", resume)


def test_json_of_a_trace_has_offsets_within_a_process_only():
    spans = parse_traces(TRACE)

    plain = {span["name"]: span for span in spans_plain(tree(spans), spans)}

    assert plain["migration.downtime"]["process_offset_s"] == 0.08
    assert plain["AgentService/ResumeMigration"]["process_offset_s"] == 0
    assert plain["AgentService/ResumeMigration"]["duration_s"] == 0.003
