"""A trace drawn for people: a tree with times, and each host's spans as bars on a time line of its own.

All time lines have one scale, so that lengths can be compared; each begins with its host's first span. Where one host's
line lies against another's is not known, and nothing here pretends to know it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from coordinator.cli.screen import printable
from coordinator.cli.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from coordinator.cli.spans import Process, Row, Span

_BAR_WIDTH = 30
_MIN_BAR_WIDTH = len("ON ITS HOST")
_MIN_LABEL_WIDTH = 30
_TIME_WIDTH = len("+1.23 ms")
_MAX_BAR_WIDTH = 60
# The times, and the gaps between the columns.
_OTHER_WIDTH = 2 * _TIME_WIDTH + 10
_COLOURS = ("cyan", "magenta", "green", "blue", "yellow")


def draw(rows: Sequence[Row], *, width: int | None = None) -> Table:
    """Draw the rows of a tree; the bars take what a terminal of that width has left."""
    labels = [(_label(row), _process(row)) for row in rows]
    spans = [span for row in rows for span in row.spans]
    line = _TimeLines(spans, _bar_width(labels, width))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    process_width = max((len(process) for _, process in labels), default=0)
    label_width = None if width is None else max(_MIN_LABEL_WIDTH, width - process_width - _OTHER_WIDTH - _MIN_BAR_WIDTH)
    table.add_column("SPAN", no_wrap=True, overflow="ellipsis", max_width=label_width)
    table.add_column("PROCESS", no_wrap=True, min_width=process_width)
    table.add_column("AT", justify="right", no_wrap=True, min_width=_TIME_WIDTH)
    table.add_column("TIME", justify="right", no_wrap=True, min_width=_TIME_WIDTH)
    table.add_column("ON ITS HOST", no_wrap=True, min_width=_MIN_BAR_WIDTH)
    for row, (label, process) in zip(rows, labels, strict=True):
        colour = line.colour(row.first)
        table.add_row(
            label,
            Text(process, colour),
            f"+{format_duration(line.offset_s(row.first))}",
            format_duration(row.duration_s),
            Text(line.bar(row.spans), colour),
        )
    return table


def spans_plain(rows: Iterable[Row], spans: Sequence[Span]) -> list[dict[str, object]]:
    """List the spans in the order of the tree, for programs."""
    line = _TimeLines(spans, _BAR_WIDTH)
    return [
        {
            "name": span.name,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "service": span.process.service,
            "host": span.process.host,
            "process_offset_s": line.offset_s(span),
            "duration_s": span.duration_s,
            "error": span.error,
            "attributes": dict(span.attributes),
        }
        for row in rows
        for span in row.spans
    ]


def _bar_width(labels: Sequence[tuple[Text, str]], width: int | None) -> int:
    if width is None or not labels:
        return _BAR_WIDTH
    longest = max(len(label) for label, _ in labels) + max(len(process) for _, process in labels)
    return min(_MAX_BAR_WIDTH, max(_MIN_BAR_WIDTH, width - longest - _OTHER_WIDTH))


def _process(row: Row) -> str:
    return printable(f"{row.first.process.host} {row.first.process.service.removeprefix('ferry-')}")


def _label(row: Row) -> Text:
    count = f" x {len(row.spans)}" if len(row.spans) > 1 else ""
    text = Text.assemble((row.lead, "dim"), printable(row.first.name) + count)
    if row.first.error:
        text.append(f"  {printable(row.first.error).splitlines()[0][:60]}", "red")
    return text


class _TimeLines:
    """Where spans lie on the clock of their process and of their host."""

    def __init__(self, spans: Iterable[Span], width: int) -> None:
        self._width = width
        by_host: dict[str, list[Span]] = defaultdict(list)
        self._process_start_ns: dict[Process, int] = {}
        for span in spans:
            by_host[span.process.host].append(span)
            started_ns = self._process_start_ns.get(span.process, span.start_ns)
            self._process_start_ns[span.process] = min(started_ns, span.start_ns)
        self._host_start_ns = {host: min(span.start_ns for span in own) for host, own in by_host.items()}
        self._hosts = sorted(by_host)
        longest_ns = max((max(span.end_ns for span in own) - self._host_start_ns[host] for host, own in by_host.items()), default=0)
        self._cell_ns = max(1, longest_ns) / width

    def colour(self, span: Span) -> str:
        """Give each host a colour of its own."""
        return _COLOURS[self._hosts.index(span.process.host) % len(_COLOURS)]

    def offset_s(self, span: Span) -> float:
        """Tell how long after its process's first span it began."""
        return (span.start_ns - self._process_start_ns[span.process]) / 1e9

    def bar(self, spans: Sequence[Span]) -> str:
        """Draw spans of one host on its line."""
        cells = [" "] * self._width
        origin_ns = self._host_start_ns[spans[0].process.host]
        for span in spans:
            first = min(self._width - 1, int((span.start_ns - origin_ns) / self._cell_ns))
            last = min(self._width - 1, int((span.end_ns - origin_ns) / self._cell_ns))
            if span.end_ns - span.start_ns < self._cell_ns:
                cells[first] = "▏" if cells[first] == " " else cells[first]
            else:
                cells[first : last + 1] = "█" * (last + 1 - first)
        return "".join(cells).rstrip()
