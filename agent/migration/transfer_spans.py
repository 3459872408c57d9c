"""The spans of a transfer, made from its timeline after the hand-over so that they cost the guest nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from agent.migration.clocks import wall_of
from agent.migration.record import Facts

_NS: Final = 1_000_000_000
_tracer = trace.get_tracer("agent.migration")


@contextmanager
def untraced() -> Iterator[None]:
    """Make no spans inside: for what is asked every half a second."""
    unsampled = SpanContext(trace_id=1, span_id=1, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))
    token = otel_context.attach(trace.set_span_in_context(NonRecordingSpan(unsampled)))
    try:
        yield
    finally:
        otel_context.detach(token)


def record_transfer(facts: Facts, parent: otel_context.Context) -> None:
    """Make `migration.precopy` with a child for each pass, and `migration.downtime` with its named legs."""
    line = facts.timeline
    if line.started_at_s is None or line.stopped_at_s is None:
        return
    precopy = _span("migration.precopy", line.started_at_s, line.stopped_at_s, parent, {"migration.passes": len(line.pass_at_s)})
    starts = [at_s for at_s in line.pass_at_s if at_s <= line.stopped_at_s]  # none, when the guest was paused throughout
    for number, (began_s, ended_s) in enumerate(itertools.pairwise((*starts, line.stopped_at_s)), start=1):
        _span("migration.pass", began_s, ended_s, precopy, {"migration.pass": number})
    legs = line.downtime_legs()
    if not legs:
        return
    total_s = sum(leg.duration_s for leg in legs)
    downtime = _span(
        "migration.downtime",
        line.stopped_at_s,
        line.stopped_at_s + total_s,
        parent,
        {"migration.downtime_ms": total_s * 1000, "qemu.downtime_ms": line.qemu_downtime_ms or 0},
    )
    at_s = line.stopped_at_s
    for leg in legs:
        _span(f"migration.downtime.{leg.name}", at_s, at_s + leg.duration_s, downtime, {})
        at_s += leg.duration_s


def record_post_copy(facts: Facts, parent: otel_context.Context) -> None:
    """Make `migration.postcopy`, from QEMU's `postcopy-active` to its `completed`."""
    line = facts.timeline
    if line.post_copy_at_s is None or line.completed_at_s is None:
        return
    requests = 0 if facts.progress is None else facts.progress.figures.postcopy_request_count
    attributes: dict[str, int | float | str] = {
        "migration.postcopy_requests": requests,
        "migration.postcopy_cause": facts.post_copy_cause,
    }
    _span("migration.postcopy", line.post_copy_at_s, line.completed_at_s, parent, attributes)


def _span(
    name: str, began_s: float, ended_s: float, parent: otel_context.Context, attributes: Mapping[str, int | float | str]
) -> otel_context.Context:
    shown_s = wall_of(began_s)
    span = _tracer.start_span(name, parent, start_time=int(shown_s * _NS), attributes=attributes)
    span.end(int((shown_s + max(ended_s - began_s, 0.0)) * _NS))
    return trace.set_span_in_context(span, parent)
