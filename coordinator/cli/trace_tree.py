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
_COLOURS = ("cyan", "magenta", "green", "blue", "yellow")


def draw(rows: Sequence[Row], *, bar_width: int = _BAR_WIDTH) -> Table:
    """Draw the rows of a tree."""
    spans = [span for row in rows for span in row.spans]
    line = _TimeLines(spans, bar_width)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("SPAN", no_wrap=True)
    table.add_column("PROCESS", no_wrap=True)
    table.add_column("AT", justify="right", no_wrap=True)
    table.add_column("TIME", justify="right", no_wrap=True)
    table.add_column("ON ITS HOST'S CLOCK", no_wrap=True)
    for row in rows:
        colour = line.colour(row.first)
        table.add_row(
            _label(row),
            Text(printable(f"{row.first.process.service} {row.first.process.host}"), colour),
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
            is_short = span.end_ns - span.start_ns < self._cell_ns
            for cell in range(first, max(first, last) + 1):
                cells[cell] = "▏" if is_short and cells[cell] == " " else "█"
        return "".join(cells).rstrip()
