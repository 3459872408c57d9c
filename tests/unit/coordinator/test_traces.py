"""Spans: kept once each, bounded, and never a reason to fail."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData

from common.tasks import OwnedTasks
from coordinator import traces
from coordinator.traces import Traces

TRACE = bytes(range(16))
OTHER_TRACE = bytes(16)


def data(*span_numbers: int, trace: bytes = TRACE) -> bytes:
    spans = [Span(trace_id=trace, span_id=number.to_bytes(8), name=f"s{number}") for number in span_numbers]
    return TracesData(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])]).SerializeToString()


def names(kept: Traces, trace: bytes = TRACE) -> list[str]:
    found = TracesData.FromString(kept.of(trace.hex()))
    return [span.name for resource in found.resource_spans for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def kept(path: Path) -> Iterator[Traces]:
    kept = Traces(path, lambda _trace_id: data(3))
    yield kept
    kept.close()


def test_a_span_that_comes_twice_is_kept_once(kept: Traces):
    kept.keep(data(1, 2))
    kept.keep(data(2))
    kept.keep_own(TRACE.hex())

    assert names(kept) == ["s1", "s2", "s3"]


def test_traces_are_told_apart(kept: Traces):
    kept.keep(data(1))
    kept.keep(data(1, trace=OTHER_TRACE))

    assert names(kept) == ["s1"]
    assert names(kept, OTHER_TRACE) == ["s1"]


def test_bytes_that_are_no_spans_are_dropped(kept: Traces):
    kept.keep(b"\xff\xff\xff")
    kept.keep(b"")
    kept.keep(data(1))

    assert names(kept) == ["s1"]


def test_spans_are_there_after_a_restart(path: Path):
    first = Traces(path, lambda _trace_id: b"")
    first.keep(data(1))
    first.close()

    second = Traces(path, lambda _trace_id: b"")
    assert names(second) == ["s1"]
    second.close()


def test_the_oldest_spans_go_when_there_are_too_many_bytes(kept: Traces, monkeypatch):
    monkeypatch.setattr(traces, "MAX_BYTES", 10 * (traces.ROW_BYTES + 40))
    monkeypatch.setattr(traces, "TRIM_EVERY_BYTES", 5 * (traces.ROW_BYTES + 40))

    for number in range(1, 31):
        kept.keep(data(number))

    assert 8 <= len(names(kept)) <= 20
    assert names(kept)[-1] == "s30"


def test_what_comes_faster_than_it_can_be_written_is_dropped(kept: Traces, monkeypatch):
    monkeypatch.setattr(traces, "MAX_WAITING_BYTES", 2 * len(data(1)))

    for number in (1, 2, 3):
        kept.keep(data(number))

    assert names(kept) == ["s1", "s2"]


def test_a_span_that_is_too_large_is_dropped(kept: Traces):
    large = Span(trace_id=TRACE, span_id=b"12345678", name="x" * traces.MAX_SPAN_BYTES)
    kept.keep(TracesData(resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[large])])]).SerializeToString())
    kept.keep(data(1))

    assert names(kept) == ["s1"]


def test_the_file_is_bounded_and_nobody_elses(path: Path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_PAGES", 20)
    kept = Traces(path, lambda _trace_id: b"")
    for number in range(1, 2000):
        kept.keep(data(number))
    kept.close()

    assert path.stat().st_size <= 20 * 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_spans_are_written_as_they_come(kept: Traces):
    async with OwnedTasks() as tasks, asyncio.timeout(5):
        tasks.start(kept.run())
        kept.keep(data(1))
        while kept._waiting:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0)

    assert names(kept) == ["s1"]


@pytest.mark.parametrize("content", [b"this is no database, and never was one" * 100, b""])
def test_a_file_that_cannot_be_read_is_begun_anew(path: Path, content: bytes):
    path.write_bytes(content)

    kept = Traces(path, lambda _trace_id: b"")
    kept.keep(data(1))

    assert names(kept) == ["s1"]
    kept.close()
