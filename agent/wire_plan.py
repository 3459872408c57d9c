"""Plans between messages and our own types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.findings import Finding
from ferry.common.v1 import plan_pb2 as pb

if TYPE_CHECKING:
    from agent.migration.forecast import Forecast, Span


def finding(value: Finding) -> pb.Finding:
    """Encode a finding."""
    severity = pb.Finding.Severity.Value(f"SEVERITY_{value.severity.name}")
    return pb.Finding(code=value.code, severity=severity, side=value.side, text=value.text)


def forecast(value: Forecast) -> pb.Forecast:
    """Encode what a migration is going to be."""
    measured = value.measured
    return pb.Forecast(
        duration_seconds=_span(value.duration_s),
        downtime_seconds=_span(value.downtime_s),
        transferred_bytes=_span(value.sent_bytes),
        pass_count=_span(value.pass_count),
        strategy=value.strategy,
        ends=value.ends,
        measured_bytes_per_second=_span(measured.bytes_per_second),
        measured_dirty_bytes_per_second=_span(measured.dirty_bytes_per_second),
        working_set_bytes=measured.working_set_bytes,
        memory_bytes=measured.memory_bytes,
        used_bytes=measured.used_bytes,
        disk_seconds=None if value.disk_s is None else _span(value.disk_s),
        disk_bytes=value.disk_bytes,
    )


def _span(value: Span) -> pb.Span:
    return pb.Span(low=value.low, likely=value.likely, high=value.high)
