"""Spans of migrations, kept in a database file of their own: bounded and best effort, they decide nothing.

The file may be deleted at any time. Its format is OTLP's own: one serialised ResourceSpans with one span a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog
from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, TracesData

MAX_SPAN_COUNT: Final = 200_000
TRIM_EVERY: Final = 1000

_metadata = sa.MetaData()
_spans = sa.Table(
    "spans",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("trace_id", sa.String, nullable=False, index=True),
    sa.Column("span_id", sa.String, nullable=False, unique=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
_log = structlog.get_logger()


class Traces:
    """The kept spans."""

    def __init__(self, path: Path, own_spans_of: Callable[[str], bytes]) -> None:
        self._engine = sa.create_engine(f"sqlite:///{path}")
        self._own_spans_of = own_spans_of
        self._added = 0
        _metadata.create_all(self._engine)

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def keep_own(self, trace_id: str) -> None:
        """Keep this process's spans of a trace."""
        self.keep(self._own_spans_of(trace_id))

    def keep(self, traces_data: bytes) -> None:
        """Keep every span of a serialised TracesData; one that is known stays as it is. What cannot be kept is dropped."""
        try:
            rows = list(_rows(TracesData.FromString(traces_data)))
            if not rows:
                return
            with self._engine.begin() as connection:
                connection.execute(sa.insert(_spans).prefix_with("OR IGNORE"), rows)
            self._added += len(rows)
            if self._added > TRIM_EVERY:
                self._trim()
        except (sa.exc.SQLAlchemyError, DecodeError) as error:
            _log.warning("spans dropped", error=str(error))

    def of(self, trace_id: str) -> bytes:
        """Return the kept spans of a trace: a serialised TracesData."""
        query = sa.select(_spans.c.content).where(_spans.c.trace_id == trace_id).order_by(_spans.c.number)
        with self._engine.connect() as connection:
            contents = connection.execute(query).scalars().all()
        return TracesData(resource_spans=[ResourceSpans.FromString(content) for content in contents]).SerializeToString()

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
