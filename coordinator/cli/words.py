"""Migrations in words: where the guest is, what became of it, what to do now.

Pure. The words never claim more than the coordinator said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.cli.arrival import how_to_resume
from coordinator.cli.plain import enum_name, seconds
from coordinator.cli.units import format_duration
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

_ID_LENGTH = 8
# Reasons of ends and stops that were the guest's own doing.
_OF_GUEST = frozenset({"GUEST_SHUT_DOWN", "GUEST_PANICKED", "GUEST_IO_ERROR", "GUEST_WATCHDOG", "GUEST_CPU_ERROR"})


def short_id(migration_id: str) -> str:
    """Shorten an id to what people type; the coordinator takes any unique beginning."""
    return migration_id[:_ID_LENGTH]


def state_word(migration: pb.Migration) -> str:
    """Name a migration's state in small letters."""
    return enum_name(pb.Migration.State.DESCRIPTOR, migration.state).lower().replace("_", "-")


def location_word(migration: pb.Migration) -> str:
    """Say where the guest is."""
    match migration.guest_location:
        case pb.Migration.GUEST_LOCATION_SOURCE:
            return migration.source_host
        case pb.Migration.GUEST_LOCATION_DESTINATION:
            return migration.destination_host
        case pb.Migration.GUEST_LOCATION_SWITCHING:
            return "between the hosts"
        case pb.Migration.GUEST_LOCATION_NOWHERE:
            return "nowhere"
        case pb.Migration.GUEST_LOCATION_ENDED_AT_DESTINATION:
            return f"ended on {migration.destination_host}"
        case _:
            return "not known"


def elapsed_s(migration: pb.Migration) -> float | None:
    """Tell how long the migration took, on the coordinator's clock; None before its end."""
    if not migration.HasField("end_time"):
        return None
    return (migration.end_time.ToNanoseconds() - migration.create_time.ToNanoseconds()) / 1e9


def outcome(migration: pb.Migration) -> Iterable[str]:
    """Tell how a migration stands, in a few lines: what happened, where the guest is, what to do."""
    vm, source, destination = migration.vm_name, migration.source_host, migration.destination_host
    match migration.state:
        case pb.Migration.STATE_SUCCEEDED:
            yield _success(migration)
            if migration.progress.arrival.is_paused:
                yield how_to_resume(migration.options.destination_name or vm, destination)
            if migration.error:
                yield migration.error
            return
        case pb.Migration.STATE_CANCELLED:
            yield f"{vm} was not moved to {destination}: {migration.error or 'cancelled'}"
        case pb.Migration.STATE_FAILED if migration.guest_location == pb.Migration.GUEST_LOCATION_ENDED_AT_DESTINATION:
            yield f"{vm} moved to {destination} and has ended there: {_cause(migration)}"
        case pb.Migration.STATE_FAILED:
            yield f"{vm} was not moved to {destination}: {_cause(migration)}"
        case pb.Migration.STATE_WAITING if migration.phase in {"Following", "Broken"}:
            yield f"{vm} is on {destination} and waits for the rest of its memory: {_cause(migration)}"
            yield f"end no QEMU of it, on either host: {source} and {destination} each hold a part of it"
            return
        case pb.Migration.STATE_WAITING:
            yield f"{vm} stands still and waits: {_cause(migration)}"
            yield "it goes on by itself as soon as that host answers again; nothing is lost until then"
            return
        case _:
            yield f"{vm} is on its way from {source} to {destination} ({state_word(migration)})"
            yield f"follow it: ferry migration watch {short_id(migration.id)}"
            return
    yield from _place(migration)


def _success(migration: pb.Migration) -> str:
    took_s = elapsed_s(migration)
    took = f" in {format_duration(took_s)}" if took_s is not None else ""
    if migration.options.modes.offline:
        took = ", stopped as it was"
    name = migration.options.destination_name
    renamed = f" as {name}" if name and name != migration.vm_name else ""
    text = f"{migration.vm_name} moved from {migration.source_host} to {migration.destination_host}{renamed}{took}"
    if migration.HasField("downtime") and not migration.progress.arrival.is_paused:
        text += f"; it stood still for {format_duration(seconds(migration.downtime.total))}"
    return text


def _cause(migration: pb.Migration) -> str:
    text = migration.error or "no reason was given"
    return f"{text} [{migration.error_reason}]" if migration.error_reason else text


def _place(migration: pb.Migration) -> Iterable[str]:
    vm, source, destination = migration.vm_name, migration.source_host, migration.destination_host
    match migration.guest_location:
        case pb.Migration.GUEST_LOCATION_SOURCE if migration.error_reason in _OF_GUEST:
            yield f"the guest is on {source} and stands still for a reason of its own"
        case pb.Migration.GUEST_LOCATION_SOURCE:
            is_offline = migration.options.modes.offline
            yield f"its definition stays on {source}" if is_offline else f"the guest is on {source} and goes on as before"
        case pb.Migration.GUEST_LOCATION_DESTINATION:
            yield f"the guest is on {destination}; what is left on {source} must not be started"
            yield f"look at both: ferry vm ls, ferry migration show {short_id(migration.id)}"
        case pb.Migration.GUEST_LOCATION_NOWHERE if migration.error_reason in _OF_GUEST:
            yield "the guest has ended by itself"
            if not any(disk.is_newest for disk in migration.progress.disks):
                yield f"start it anew: ferry vm start {vm} --host {source}"
        case pb.Migration.GUEST_LOCATION_NOWHERE:
            yield "the guest runs nowhere: its QEMU ended during the migration, and what was only in its memory is lost"
            if not any(disk.is_newest for disk in migration.progress.disks):  # else the error says where they are
                yield f"start it anew: ferry vm start {vm} --host {source}"
        case pb.Migration.GUEST_LOCATION_ENDED_AT_DESTINATION:
            yield f"the guest ran on {destination} and its QEMU ended there, where its definition and its newest disks are"
            yield f"start it there: ferry vm start {migration.options.destination_name or vm} --host {destination}"
        case _:
            yield f"it is not known whether the guest is on {source} or on {destination}; start it on neither"
            yield f"look at both: ferry vm ls, ferry migration show {short_id(migration.id)}"
