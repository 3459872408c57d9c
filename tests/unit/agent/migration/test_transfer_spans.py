"""The spans of a transfer, made of its timeline."""

from __future__ import annotations

from opentelemetry import context as otel_context

from agent.migration.order import Options, Role
from agent.migration.progress import Timeline
from agent.migration.record import Facts
from agent.migration.transfer_spans import record_transfer

PAUSED_THROUGHOUT = Timeline(
    started_at_s=10.1, stopped_at_s=10.0, pass_at_s=(10.2, 11.0), continued_at_s=12.0, completed_at_s=12.1, resumed_at_s=12.2
)


def test_a_guest_that_was_paused_throughout_has_spans_too():
    facts = Facts("m-1", Role.SOURCE, "u", "web", Options(pause=True), 1, 10.0, timeline=PAUSED_THROUGHOUT)

    record_transfer(facts, otel_context.Context())
