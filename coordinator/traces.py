"""Spans of migrations, kept in a database file of their own: bounded and best effort, they decide nothing.

The file may be deleted at any time. Its format is OTLP's own: one serialised ResourceSpans with one span a row. It is written by a
thread, so that nobody waits for it; what comes faster than it can be written is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Final

import sqlalchemy as sa
import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

from common.errors import InvalidRequest
from common.telemetry import decode_traces
from coordinator.database import BROKEN, open_database

MAX_SPAN_COUNT: Final = 200_000
TRIM_EVERY: Final = 1000
MAX_WAITING_COUNT: Final = 200

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
            self._engine = open_database(path, _metadata, synchronous="NORMAL")
        except BROKEN as error:
            _log.warning("traces begun anew", path=str(path), error=str(error))
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._engine = open_database(path, _metadata, synchronous="NORMAL")
        self._own_spans_of = own_spans_of
        self._waiting: deque[bytes] = deque()
        self._has_waiting = asyncio.Event()
        self._writing = Lock()
        self._added = 0

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
        if len(self._waiting) >= MAX_WAITING_COUNT:
            _log.warning("spans dropped", error="they come faster than they can be written")
            return
        self._waiting.append(traces_data)
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
                self._write(self._waiting.popleft())

    def _write(self, traces_data: bytes) -> None:
        try:
            rows = list(_rows(decode_traces(traces_data)))
            if not rows:
                return
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_spans).prefix_with("OR IGNORE"), rows)
            self._added += len(rows)
            if self._added > TRIM_EVERY:
                self._trim()
        except (*BROKEN, InvalidRequest) as error:
            _log.warning("spans dropped", error=str(error))

    def _trim(self) -> None:
        self._added = 0
        newest = sa.select(sa.func.max(_spans.c.number)).scalar_subquery()
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_spans).where(_spans.c.number <= newest - MAX_SPAN_COUNT))


def _rows(data: TracesData) -> Iterator[dict[str, object]]:
    for resource in data.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                single = ResourceSpans(resource=resource.resource, scope_spans=[ScopeSpans(scope=scope.scope, spans=[span])])
                yield {
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "content": single.SerializeToString(),
                }
