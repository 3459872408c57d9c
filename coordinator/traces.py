"""Spans of migrations, kept in a database file of their own: bounded and best effort, they decide nothing.

The file may be deleted at any time. Its format is OTLP's own: one serialised ResourceSpans with one span a row. It is written by a
thread, so that nobody waits for it; what comes faster than it can be written is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

import sqlalchemy as sa
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

from common.errors import InvalidRequest
from common.telemetry import decode_traces
from coordinator.database import BROKEN, open_database

MAX_BYTES: Final = 64 << 20
TRIM_EVERY_BYTES: Final = 4 << 20
MAX_WAITING_BYTES: Final = 8 << 20
MAX_SPAN_BYTES: Final = 64 << 10
# What a span takes beside its content: its two ids, twice, and the pages of table and index.
ROW_BYTES: Final = 200
# The file's own bound, with room for what is being replaced; what SQLite refuses then is dropped. Source: sqlite.org/pragma.html.
MAX_PAGES: Final = 32_768  # of 4 KiB: 128 MiB

_metadata = sa.MetaData()
_spans = sa.Table(
    "spans",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("trace_id", sa.String, nullable=False),
    sa.Column("span_id", sa.String, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("trace_id", "span_id"),
)
_log = structlog.get_logger()


class Traces:
    """The kept spans. While `run` runs they are written as they come; else when they are asked for."""

    def __init__(self, path: Path, own_spans_of: Callable[[str], bytes]) -> None:
        """Open the file; one that cannot be read is begun anew."""
        try:
            self._engine = open_database(path, _metadata, synchronous="NORMAL", max_pages=MAX_PAGES)
        except BROKEN as error:
            _log.warning("traces begun anew", path=str(path), error=str(error))
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._engine = open_database(path, _metadata, synchronous="NORMAL", max_pages=MAX_PAGES)
        self._own_spans_of = own_spans_of
        self._waiting: deque[bytes] = deque()
        self._has_waiting = asyncio.Event()
        self._writing = Lock()
        self._waiting_bytes = 0
        self._added_bytes = 0
        with suppress(*BROKEN):
            self._trim()

    def close(self) -> None:
        """Write what waits and close the file."""
        self._write_waiting()
        self._engine.dispose()

    async def run(self) -> None:
        """Write spans as they come, until cancelled."""
        while True:
            await self._has_waiting.wait()
            self._has_waiting.clear()
            await asyncio.to_thread(self._write_waiting)

    def keep_own(self, trace_id: str) -> None:
        """Keep this process's spans of a trace."""
        self.keep(self._own_spans_of(trace_id))

    def keep(self, traces_data: bytes) -> None:
        """Keep every span of a serialised TracesData, soon; one that is known stays as it is. What cannot be kept is dropped."""
        if not traces_data:
            return
        if self._waiting_bytes + len(traces_data) > MAX_WAITING_BYTES:
            _log.warning("spans dropped", error="they come faster than they can be written")
            return
        self._waiting.append(traces_data)
        self._waiting_bytes += len(traces_data)
        self._has_waiting.set()

    def of(self, trace_id: str) -> bytes:
        """Return the kept spans of a trace: a serialised TracesData."""
        self._write_waiting()
        query = sa.select(_spans.c.content).where(_spans.c.trace_id == trace_id).order_by(_spans.c.number)
        try:
            with self._engine.connect() as connection:
                contents = connection.execute(query).scalars().all()
        except BROKEN as error:
            _log.warning("spans cannot be read", error=str(error))
            return b""
        return TracesData(resource_spans=[ResourceSpans.FromString(content) for content in contents]).SerializeToString()

    def _write_waiting(self) -> None:
        with self._writing:
            while self._waiting:
                content = self._waiting.popleft()
                self._waiting_bytes -= len(content)
                self._write(content)

    def _write(self, traces_data: bytes) -> None:
        try:
            rows = list(_rows(decode_traces(traces_data)))
            if not rows:
                return
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_spans).prefix_with("OR IGNORE"), rows)
            self._added_bytes += sum(_size(row) for row in rows)
            if self._added_bytes > TRIM_EVERY_BYTES:
                self._trim()
        except (*BROKEN, InvalidRequest) as error:
            _log.warning("spans dropped", error=str(error))

    def _trim(self) -> None:
        """Forget the oldest spans beyond what may be kept."""
        self._added_bytes = 0
        sizes = sa.func.length(_spans.c.content) + ROW_BYTES
        newer_bytes = sa.func.sum(sizes).over(order_by=_spans.c.number.desc())
        counted = sa.select(_spans.c.number, newer_bytes.label("newer_bytes")).subquery()
        too_old = sa.select(sa.func.max(counted.c.number)).where(counted.c.newer_bytes > MAX_BYTES)
        with self._engine.begin() as connection:
            oldest = connection.execute(too_old).scalar()
            if oldest is not None:
                connection.execute(sa.delete(_spans).where(_spans.c.number <= oldest))


def _rows(data: TracesData) -> Iterator[dict[str, object]]:
    for resource in data.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                single = ResourceSpans(resource=resource.resource, scope_spans=[ScopeSpans(scope=scope.scope, spans=[span])])
                content = single.SerializeToString()
                if len(content) + len(span.trace_id) + len(span.span_id) <= MAX_SPAN_BYTES:
                    yield {"trace_id": span.trace_id.hex(), "span_id": span.span_id.hex(), "content": content}


def _size(row: dict[str, object]) -> int:
    return len(str(row["trace_id"])) + len(str(row["span_id"])) + len(bytes(row["content"])) + ROW_BYTES  # type: ignore[call-overload]
