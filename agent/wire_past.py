"""Figures of past migrations to protobuf."""

from __future__ import annotations

from agent import wire
from agent.migration.order import Role
from agent.migration.past import Past
from ferry.agent.v1 import migration_pb2
from ferry.agent.v1 import statistics_pb2 as pb


def statistics(past: Past) -> pb.MigrationStatistics:
    """Encode one half of a migration, as far as statistics go."""
    is_source = past.role is Role.SOURCE
    message = pb.MigrationStatistics(
        id=past.migration_id,
        role=migration_pb2.Migration.ROLE_SOURCE if is_source else migration_pb2.Migration.ROLE_DESTINATION,
        vm_uuid=past.vm_uuid,
        vm_name=past.vm_name,
        peer_host=past.peer,
        phase=past.phase,
        error=past.error,
        error_reason=past.reason,
        create_time=wire.timestamp(past.began_at_s),
    )
    if past.ended_at_s is not None:
        message.end_time.CopyFrom(wire.timestamp(past.ended_at_s))
    if past.progress is not None:
        message.progress.CopyFrom(wire.progress(past.progress, past.timeline, past.decisions))
    if past.timeline.downtime_legs():
        message.downtime.CopyFrom(wire.downtime(past.timeline))
    return message
