from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import time

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from common import telemetry
from common.telemetry import SpanBuffer


@pytest.fixture
def buffer():
    return SpanBuffer()


@pytest.fixture
def tracer(buffer):
    provider = TracerProvider()
    provider.add_span_processor(buffer)
    return provider.get_tracer("test")


def names(data):
    return [
        span.name
        for resource in TracesData.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def trace_id(span):
    return trace.format_trace_id(span.get_span_context().trace_id)


def test_finished_spans_are_kept_by_trace(buffer, tracer):
    with tracer.start_as_current_span("outer") as outer, tracer.start_as_current_span("inner"):
        pass
    with tracer.start_as_current_span("other"):
        pass

    assert names(buffer.spans_of(trace_id(outer))) == ["inner", "outer"]


def span_objects():
    gc.collect()
    return sum(type(one) is ReadableSpan for one in gc.get_objects())


def test_spans_that_were_asked_for_are_kept_as_bytes(buffer, tracer):
    before = span_objects()
    with tracer.start_as_current_span("outer") as outer:
        with tracer.start_as_current_span("first"):
            pass
        early = buffer.spans_of(trace_id(outer))
        with tracer.start_as_current_span("second"):
            pass
    between = span_objects()
    later = buffer.spans_of(trace_id(outer))

    assert names(early) == ["first"]
    assert names(later) == names(buffer.spans_of(trace_id(outer))) == ["first", "second", "outer"]
    assert (between - before, span_objects() - before) == (2, 0)


def test_a_trace_that_still_grows_is_not_an_old_one(buffer, tracer, monkeypatch):
    monkeypatch.setattr(telemetry, "KEPT_TRACES", 2)
    with tracer.start_as_current_span("long") as long:
        with tracer.start_as_current_span("first"):
            pass
        for _ in range(3):
            tracer.start_span("other", context=trace.set_span_in_context(trace.INVALID_SPAN)).end()
            with tracer.start_as_current_span("again"):
                pass

    assert names(buffer.spans_of(trace_id(long))) == ["first", "again", "again", "again", "long"]


def test_a_trace_keeps_a_bounded_number_of_spans(buffer, tracer, monkeypatch):
    monkeypatch.setattr(telemetry, "KEPT_SPANS_PER_TRACE", 2)
    with tracer.start_as_current_span("outer") as outer:
        for name in ("one", "two", "three"):
            with tracer.start_as_current_span(name):
                pass

    assert names(buffer.spans_of(trace_id(outer))) == ["one", "two"]


def test_all_traces_together_keep_a_bounded_number_of_spans(buffer, tracer, monkeypatch):
    monkeypatch.setattr(telemetry, "KEPT_SPANS", 3)
    roots = []
    for count in (2, 1, 2):
        with tracer.start_as_current_span("root") as root:
            roots.append(root)
            for _ in range(count):
                tracer.start_span("child").end()

    assert [names(buffer.spans_of(trace_id(root))) for root in roots] == [[], [], ["child", "child", "root"]]


def run(body, **arguments):
    """Run a process of its own: telemetry is set up once a process."""
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    script = textwrap.dedent(
        f"""
        import structlog
        from opentelemetry import trace
        from common.telemetry import telemetry

        log = structlog.get_logger()
        with telemetry("ferry-test", "host-a"{", " + given if given else ""}) as spans:
        """
    ) + textwrap.indent(textwrap.dedent(body), "    ")
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)


def test_logs_are_json_lines_on_stderr_with_the_ids_of_the_span():
    done = run(
        """
        with trace.get_tracer("x").start_as_current_span("one") as span:
            log.info("phase changed", vm="web")
            print(f"{span.get_span_context().trace_id:032x}")
        log.debug("not told")
        """
    )

    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["event"], line["vm"], line["level"]) == ("phase changed", "web", "info")
    assert line["trace_id"] == done.stdout.strip()
    assert len(line["span_id"]) == 16


def test_a_dead_collector_holds_nobody_up():
    done = run(
        """
        import time
        with trace.get_tracer("x").start_as_current_span("one"):
            pass
        print(time.monotonic())
        """,
        otlp_endpoint="http://127.0.0.1:1",
    )

    assert time.monotonic() - float(done.stdout) < 5  # from the end of its work on; its start may take long
