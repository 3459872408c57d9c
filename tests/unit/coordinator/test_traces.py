"""Spans: kept once each, bounded, and never a reason to fail."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from coordinator import traces
from coordinator.traces import Traces

TRACE = bytes(range(16))


def data(*span_numbers: int) -> bytes:
    spans = [Span(trace_id=TRACE, span_id=number.to_bytes(8), name=f"s{number}") for number in span_numbers]
    return TracesData(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])]).SerializeToString()


def names(kept: Traces) -> list[str]:
    found = TracesData.FromString(kept.of(TRACE.hex()))
    return [span.name for resource in found.resource_spans for scope in resource.scope_spans for span in scope.spans]


def test_a_span_that_comes_twice_is_kept_once(tmp_path: Path):
    kept = Traces(tmp_path / "t.db", lambda _trace_id: data(3))

    kept.keep(data(1, 2))
    kept.keep(data(2))
    kept.keep_own(TRACE.hex())

    assert names(kept) == ["s1", "s2", "s3"]
    kept.close()


def test_bytes_that_are_no_spans_are_dropped(tmp_path: Path):
    kept = Traces(tmp_path / "t.db", lambda _trace_id: b"")

    kept.keep(b"\xff\xff\xff")
    kept.keep(b"")

    assert names(kept) == []
    kept.close()


def test_the_oldest_spans_go_when_there_are_too_many(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_SPAN_COUNT", 10)
    monkeypatch.setattr(traces, "TRIM_EVERY", 5)
    kept = Traces(tmp_path / "t.db", lambda _trace_id: b"")

    for number in range(1, 31):
        kept.keep(data(number))

    assert 10 <= len(names(kept)) <= 16
    assert names(kept)[-1] == "s30"
    kept.close()
