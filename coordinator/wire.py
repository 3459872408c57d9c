"""Protobuf to the coordinator's own types and back. Nothing is decided here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidRequest
from coordinator.fleet import HostState
from coordinator.halves import Move
from coordinator.moves import Order
from coordinator.planning import Plan
from ferry.common.v1 import migration_pb2 as common_pb2
from ferry.common.v1 import plan_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

MAX_CHANNEL_COUNT: Final = 255
MAX_DOWNTIME_S: Final = 2000.0
DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
_NS: Final = 1_000_000_000


def order(request: pb.StartMigrationRequest) -> Order:
    """Decode what a client wants moved.

    Raises:
        InvalidRequest: something is missing or out of range.
    """
    check_request(request)
    options = request.options
    is_tunnel = options.transport == common_pb2.TRANSPORT_TUNNEL
    return Order(
        request.request_id,
        request.vm,
        request.source_host,
        request.destination_host,
        options.SerializeToString(),
        is_tunnel,
        options.modes.offline,
    )


def check_request(request: pb.StartMigrationRequest | pb.PlanMigrationRequest) -> None:
    """Refuse what can never be moved.

    Raises:
        InvalidRequest: something is missing or out of range.
    """
    if not request.vm:
        raise InvalidRequest("no VM named", reason="VM_MISSING")
    if not request.destination_host:
        raise InvalidRequest("no destination host named", reason="HOST_MISSING")
    options = request.options
    check_bounds(options.bandwidth_bytes_per_second, seconds(options.max_downtime) if options.HasField("max_downtime") else None)
    if not 0 <= options.multifd_channel_count <= MAX_CHANNEL_COUNT:
        raise InvalidRequest(
            f"multifd: {options.multifd_channel_count} channels; 0 (off) to {MAX_CHANNEL_COUNT} are possible",
            reason="CHANNEL_COUNT_OUT_OF_RANGE",
        )
    if options.transport not in common_pb2.Transport.values():
        raise InvalidRequest(f"transport {options.transport} is unknown; direct and tunnel are known", reason="TRANSPORT_UNKNOWN")
    is_tunnel = options.transport == common_pb2.TRANSPORT_TUNNEL
    if is_tunnel and (options.plain or options.migrate_uri):
        other = "plain" if options.plain else "migrate-uri"
        raise InvalidRequest(f"tunnel and {other} exclude each other", reason="OPTIONS_CONFLICT")


def check_bounds(bandwidth_bytes_per_second: int | None, max_downtime_s: float | None) -> None:
    """Refuse bounds out of range.

    Raises:
        InvalidRequest: the text names the bound.
    """
    if bandwidth_bytes_per_second is not None and bandwidth_bytes_per_second < 0:
        raise InvalidRequest(
            f"bandwidth: {bandwidth_bytes_per_second} bytes per second; 0 (no bound) or more is wanted",
            reason="BANDWIDTH_OUT_OF_RANGE",
        )
    if max_downtime_s is not None and not 0 < max_downtime_s <= MAX_DOWNTIME_S:
        raise InvalidRequest(
            f"max-downtime: {max_downtime_s:g} s; more than 0 and at most {MAX_DOWNTIME_S:g} s is wanted",
            reason="DOWNTIME_OUT_OF_RANGE",
        )


def page_size(wanted: int) -> int:
    """Return how many rows to list.

    Raises:
        InvalidRequest: out of range.
    """
    if not 0 <= wanted <= MAX_PAGE_SIZE:
        raise InvalidRequest(
            f"page_size {wanted}: 1 to {MAX_PAGE_SIZE} are possible, 0 means {DEFAULT_PAGE_SIZE}", reason="PAGE_SIZE_INVALID"
        )
    return wanted or DEFAULT_PAGE_SIZE


def migration(move: Move) -> pb.Migration:
    """Encode a migration."""
    message = pb.Migration(
        id=move.migration_id,
        vm_name=move.vm_name,
        vm_uuid=move.vm_uuid,
        source_host=move.source,
        destination_host=move.destination,
        state=pb.Migration.State.ValueType(move.state.value),
        guest_location=pb.Migration.GuestLocation.ValueType(move.location.value),
        step=move.step,
        phase=move.source_phase,
        status=move.status,
        error=move.error,
        error_reason=move.error_reason,
        options=_told_options(move.options),
        trace_id=move.trace_id,
        create_time=_timestamp(move.created_at_s),
        phases=[common_pb2.Leg(name=name, duration=_duration(span_s)) for name, span_s in move.phases],
        warnings=move.warnings,
        started_by=move.started_by,
        epoch=move.epoch,
    )
    if move.progress:
        message.progress.MergeFromString(move.progress)
    if move.forecast:
        message.forecast.MergeFromString(move.forecast)
    if move.downtime:
        message.downtime.MergeFromString(move.downtime)
    if move.ended_at_s is not None:
        message.end_time.CopyFrom(_timestamp(move.ended_at_s))
    return message


def plan(value: Plan) -> plan_pb2.Plan:
    """Encode a plan."""
    message = plan_pb2.Plan(
        vm_name=value.vm_name,
        vm_uuid=value.vm_uuid,
        source_host=value.source,
        destination_host=value.destination,
        findings=[
            plan_pb2.Finding(
                code=one.code,
                severity=plan_pb2.Finding.Severity.Value(f"SEVERITY_{one.severity.name}"),
                side=one.side,
                text=one.text,
            )
            for one in value.findings
        ],
    )
    if value.forecast:
        message.forecast.MergeFromString(value.forecast)
    return message


def host(state: HostState) -> pb.Host:
    """Encode a host."""
    message = pb.Host(
        name=state.agent.host,
        agent_address=state.agent.address,
        tunnel_address=state.agent.tunnel_address,
        is_reachable=state.view is not None,
        error=state.error,
    )
    if state.view is not None:
        message.qemu_version = state.view.qemu_version
        message.accelerator = state.view.accelerator
        message.memory_available_bytes = state.view.memory_available_bytes
        message.vm_count = state.view.vm_count
        message.agent_version = state.view.agent_version
        message.warnings.extend(state.view.warnings)
    return message


def wait_s(message: Duration) -> float:
    """Decode how long to wait.

    Raises:
        InvalidRequest: less than no time.
    """
    span_s = seconds(message)
    if span_s < 0:
        raise InvalidRequest(f"timeout: {span_s:g} s; 0 or more is wanted", reason="TIMEOUT_OUT_OF_RANGE")
    return span_s


def seconds(message: Duration) -> float:
    """Decode a span of time."""
    return message.seconds + message.nanos / _NS


def _duration(span_s: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(span_s * _NS))
    return message


def _timestamp(at_s: float) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(at_s, UTC))
    return message


def _told_options(serialised: bytes) -> common_pb2.MigrationOptions:
    """Decode the options for clients; domain XML is long, and is told to the source's agent only."""
    options = common_pb2.MigrationOptions.FromString(serialised)
    options.ClearField("destination_domain_xml")
    return options
