"""The spans of a trace as a tree.

Pure. Times are compared only between spans of one host: two hosts have two clocks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status, TracesData

from common.errors import Bug

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

# So many spans of one name side by side are drawn as one row.
_FOLDED_COUNT = 4


@dataclass(frozen=True, slots=True)
class Process:
    """What a span was measured by: a service on a host."""

    service: str
    host: str


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span; times are nanoseconds on its host's wall clock."""

    span_id: str
    parent_span_id: str
    name: str
    process: Process
    start_ns: int
    end_ns: int
    error: str
    attributes: Mapping[str, object]

    @property
    def duration_s(self) -> float:
        """Time from start to end."""
        return max(0, self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the drawn tree.

    Attributes:
        lead: the lines that tie it to its parent.
        spans: the span, or several of one name that are drawn together.
    """

    lead: str
    spans: tuple[Span, ...]

    @property
    def first(self) -> Span:
        """The span, or the first of several."""
        return self.spans[0]

    @property
    def duration_s(self) -> float:
        """Time of all the row's spans together."""
        return sum(span.duration_s for span in self.spans)


def parse_traces(traces_data: bytes) -> tuple[Span, ...]:
    """Read a serialised TracesData; a span that came twice counts once.

    Raises:
        Bug: the bytes are not a TracesData.
    """
    try:
        traces = TracesData.FromString(traces_data)
    except DecodeError as error:
        raise Bug("the coordinator's answer to GetTrace is not a TracesData") from error
    spans: dict[str, Span] = {}
    for resource_spans in traces.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        process = Process(str(resource.get("service.name", "?")), str(resource.get("host.name", "?")))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                spans[span.span_id.hex()] = _span(span, process)
    return tuple(spans.values())


def tree(spans: Iterable[Span]) -> tuple[Row, ...]:
    """Order spans as a tree, depth first; a span whose parent is not there is a root."""
    known = {span.span_id: span for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in known.values():
        children[span.parent_span_id if span.parent_span_id in known else ""].append(span)
    return tuple(_rows(children, "", "", host=""))


def _rows(children: Mapping[str, Sequence[Span]], parent_id: str, lead: str, *, host: str) -> Iterator[Row]:
    groups = list(_folded(children, _ordered(children.get(parent_id, ()), host)))
    for index, group in enumerate(groups):
        is_last = index == len(groups) - 1
        is_root = not parent_id
        yield Row("" if is_root else lead + ("└─ " if is_last else "├─ "), group)
        if len(group) == 1:
            below = "" if is_root else lead + ("   " if is_last else "│  ")
            yield from _rows(children, group[0].span_id, below, host=group[0].process.host)


def _ordered(spans: Sequence[Span], host: str) -> list[Span]:
    """Put the parent's host first; order by time only within a host."""
    return sorted(spans, key=lambda span: (span.process.host != host, span.process.host, span.start_ns, span.span_id))


def _folded(children: Mapping[str, Sequence[Span]], ordered: Sequence[Span]) -> Iterator[tuple[Span, ...]]:
    """Put many childless spans of one name and process together, at the place of the first."""
    groups: dict[tuple[str, Process, str], list[Span]] = {}
    for span in ordered:
        is_foldable = not children.get(span.span_id) and not span.error
        key = (span.name, span.process, "" if is_foldable else span.span_id)
        groups.setdefault(key, []).append(span)
    small = [group for group in groups.values() if len(group) < _FOLDED_COUNT]
    large = [tuple(group) for group in groups.values() if len(group) >= _FOLDED_COUNT]
    singles = [(span,) for group in small for span in group]
    places = {span.span_id: place for place, span in enumerate(ordered)}
    yield from sorted([*singles, *large], key=lambda group: places[group[0].span_id])


def _span(span: OtlpSpan, process: Process) -> Span:
    is_error = span.status.code == Status.STATUS_CODE_ERROR
    return Span(
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        process=process,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        error=(span.status.message or "failed") if is_error else "",
        attributes=_attributes(span.attributes),
    )


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, object]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: AnyValue) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case _:
            return str(value).strip()
