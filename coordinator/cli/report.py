"""Hosts, VMs and migrations as tables for people.

Pure: messages in, renderables out.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from coordinator.cli.arrival import arrival_rows, modes_words
from coordinator.cli.decisions import decisions_table
from coordinator.cli.disks_view import disk_rows, disks_words
from coordinator.cli.plain import enum_name, seconds
from coordinator.cli.plan_view import comparison
from coordinator.cli.screen import columns, pairs
from coordinator.cli.statistics import means_words
from coordinator.cli.units import format_bytes, format_duration, format_rate
from coordinator.cli.words import elapsed_s, location_word, short_id, state_word
from ferry.agent.v1 import vm_pb2
from ferry.common.v1 import budget_pb2 as common_budget
from ferry.common.v1 import migration_pb2 as common
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

_STATE_STYLES = {
    pb.Migration.STATE_SUCCEEDED: "green",
    pb.Migration.STATE_FAILED: "bold red",
    pb.Migration.STATE_CANCELLED: "yellow",
    pb.Migration.STATE_WAITING: "bold yellow",
}
_VM_STYLES = {
    vm_pb2.Vm.STATE_RUNNING: "green",
    vm_pb2.Vm.STATE_CRASHED: "bold red",
    vm_pb2.Vm.STATE_UNKNOWN: "bold yellow",
}


def hosts_table(hosts: Iterable[pb.Host]) -> Table:
    """List the hosts of the fleet."""
    rows = [
        (
            host.name,
            Text("up", "green") if host.is_reachable else Text("unreachable", "bold red"),
            host.agent_address,
            host.tunnel_address or "-",
            host.qemu_version or "-",
            host.accelerator or "-",
            format_bytes(host.memory_available_bytes) if host.is_reachable else "-",
            str(host.vm_count) if host.is_reachable else "-",
        )
        for host in hosts
    ]
    return columns(("HOST", "STATE", "AGENT", "TUNNEL", "QEMU", "ACCEL", "MEMORY FREE", "VMS"), rows)


def vms_table(vms: Iterable[tuple[str, vm_pb2.Vm]]) -> Table:
    """List VMs, each with the name of its host."""
    rows = [
        (
            vm.name,
            host,
            _vm_state(vm),
            f"{vm.job} {short_id(vm.migration_id)}".strip() or "-",
            format_bytes(vm.memory_bytes),
            str(vm.vcpu_count),
            vm.machine,
            str(vm.pid or "-"),
        )
        for host, vm in vms
    ]
    return columns(("VM", "HOST", "STATE", "JOB", "MEMORY", "VCPUS", "MACHINE", "PID"), rows)


def vm_details(host: str, vm: vm_pb2.Vm) -> RenderableType:
    """Show one VM in full."""
    rows: list[tuple[str, str | Text]] = [
        ("name", vm.name),
        ("uuid", vm.uuid),
        ("host", host),
        ("state", _vm_state(vm)),
        ("persistent", "yes" if vm.is_persistent else "no: it vanishes when it stops"),
        ("job", f"{vm.job} {vm.migration_id}".strip() or "-"),
        ("memory", f"{format_bytes(vm.memory_bytes)} ({vm.memory_bytes} bytes)"),
        ("vcpus", str(vm.vcpu_count)),
        ("machine", vm.machine),
        ("accelerator", vm.accelerator or "-"),
        ("pid", str(vm.pid or "-")),
        ("autostart", "yes" if vm.autostart else "no"),
        ("cpu shares", _shares(vm)),
    ]
    if vm.has_saved_guest:
        rows.append(("saved guest", "kept: the next start brings it back (ferry vm discard-saved removes it)"))
    if vm.moved_to:
        rows.append(("moved to", f"{vm.moved_to}: only the definition stayed here"))
    if vm.definition_differs:
        rows.append(("definition", Text("differs from what runs: it holds from the next start on", "yellow")))
    rows += [(f"file {device}", path) for device, path in sorted(vm.files.items())]
    if not vm.argv:
        return pairs(rows)
    return Group(pairs(rows), Text("command line", "bold"), Text("\n".join(_argv_lines(vm.argv))))


def migrations_table(migrations: Iterable[pb.Migration]) -> Table:
    """List migrations."""
    rows = [
        (
            short_id(migration.id),
            migration.vm_name,
            migration.source_host or "-",
            migration.destination_host,
            _state(migration),
            location_word(migration),
            _time(migration.create_time.ToSeconds()),
            _took(migration),
            format_duration(seconds(migration.downtime.total)) if migration.HasField("downtime") else "-",
        )
        for migration in migrations
    ]
    return columns(("ID", "VM", "FROM", "TO", "STATE", "GUEST", "STARTED (UTC)", "TOOK", "DOWNTIME"), rows)


def migration_details(migration: pb.Migration) -> RenderableType:
    """Show one migration in full."""
    rows: list[tuple[str, str | Text]] = [
        ("id", migration.id),
        ("vm", f"{migration.vm_name} {migration.vm_uuid}".strip()),
        ("from", migration.source_host or "-"),
        ("to", migration.destination_host),
        ("state", _state(migration)),
        ("step", migration.step or "-"),
        ("phase", " / QEMU: ".join(filter(None, (migration.phase, migration.status))) or "-"),
        ("guest", location_word(migration)),
        ("way", _way(migration.options)),
        ("started", f"{_time(migration.create_time.ToSeconds())} UTC"),
        ("took", _took(migration)),
    ]
    if migration.error:
        rows.append(("error", Text(f"{migration.error} [{migration.error_reason}]", "red")))
    return Group(pairs(rows), Text(), result_table(migration))


def result_table(migration: pb.Migration) -> RenderableType:
    """Show what a migration cost: phases with their times, bytes, downtime with its legs, trace."""
    parts: list[RenderableType] = []
    if migration.phases:
        legs = [(leg.name, format_duration(seconds(leg.duration))) for leg in migration.phases]
        parts += [columns(("PHASE", "TIME"), legs, right=frozenset({"TIME"})), Text()]
    if migration.progress.decisions:
        parts += [decisions_table(migration.progress.decisions), Text()]
    if (predicted := comparison(migration)) is not None:
        parts += [predicted, Text()]
    rows = [*_progress_rows(migration.progress)] if migration.HasField("progress") else []
    if migration.HasField("downtime"):
        rows += _downtime_rows(migration)
    rows += arrival_rows(migration.progress)
    if migration.started_by:
        rows.append(("started by", migration.started_by))
    if migration.trace_id:
        rows.append(("trace", f"{migration.trace_id}   (ferry migration show {short_id(migration.id)} --trace)"))
    return Group(*parts, pairs(rows))


def _progress_rows(progress: common.Progress) -> Iterator[tuple[str, str]]:
    passes = "pass" if progress.pass_count == 1 else "passes"
    average = progress.ram_transferred_bytes / max(seconds(progress.elapsed) - seconds(progress.setup), 0.001)
    yield "memory", format_bytes(progress.ram_total_bytes)
    sent = format_bytes(progress.ram_transferred_bytes)
    yield "sent", f"{sent} in {progress.pass_count} {passes}, {format_rate(average)} on average"
    yield "pages", f"{progress.normal_page_count} whole, {progress.zero_page_count} zero"
    if progress.figures.postcopy_request_count:
        yield "waited for", f"{progress.figures.postcopy_request_count} pages in post-copy"
    yield from disk_rows(progress.disks)
    if progress.throttle_percent:
        yield "throttled", f"{progress.throttle_percent} %"


def _downtime_rows(migration: pb.Migration) -> list[tuple[str, str]]:
    downtime, options = migration.downtime, migration.options
    allowed = f", {format_duration(seconds(options.max_downtime))} allowed" if options.HasField("max_downtime") else ""
    reported = f" (QEMU's own figure: {format_duration(seconds(downtime.qemu_reported))}{allowed})"
    if not downtime.HasField("qemu_reported"):
        reported = f" ({allowed.removeprefix(', ')})" if allowed else ""
    name = "hand-over" if migration.progress.arrival.is_paused else "downtime"
    total = (name, f"{format_duration(seconds(downtime.total))}{reported}")
    return [total, *((f"  {leg.name}", format_duration(seconds(leg.duration))) for leg in downtime.legs)]


def _way(options: common.MigrationOptions) -> str:
    words = ["tunnel" if options.transport == common.TRANSPORT_TUNNEL else "direct"]
    if options.transport != common.TRANSPORT_TUNNEL:
        words.append("plain" if options.plain else "encrypted")
    if options.multifd_channel_count:
        words.append(f"{options.multifd_channel_count} multifd channels")
    words += means_words(options.means)
    if options.bandwidth_bytes_per_second:
        words.append(f"at most {format_rate(options.bandwidth_bytes_per_second)}")
    if options.HasField("max_downtime"):
        words.append(f"at most {format_duration(seconds(options.max_downtime))} of downtime")
    if options.HasField("post_copy"):
        words.append("post-copy" + (" with preempt" if options.post_copy.preempt else ""))
    if options.budget.policy > common_budget.POLICY_SAFE:
        words.append(f"policy {common_budget.Policy.Name(options.budget.policy).removeprefix('POLICY_').lower().replace('_', '-')}")
    if options.budget.HasField("max_duration"):
        words.append(f"in at most {format_duration(seconds(options.budget.max_duration))}")
    if options.pause:
        words.append("paused")
    words += [*modes_words(options.modes), *disks_words(options.disks)]
    return ", ".join(words)


def _state(migration: pb.Migration) -> Text:
    return Text(state_word(migration), _STATE_STYLES.get(migration.state, ""))


def _shares(vm: vm_pb2.Vm) -> str:
    now = str(vm.cpu_shares) if vm.HasField("cpu_shares") else "-"
    if not vm.HasField("next_cpu_shares") or vm.next_cpu_shares == vm.cpu_shares:
        return now
    return f"{now}, from the next start on {vm.next_cpu_shares}"


def _vm_state(vm: vm_pb2.Vm) -> Text:
    return Text(enum_name(vm_pb2.Vm.State.DESCRIPTOR, vm.state).lower(), _VM_STYLES.get(vm.state, ""))


def _took(migration: pb.Migration) -> str:
    took_s = elapsed_s(migration)
    return "-" if took_s is None else format_duration(took_s)


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _argv_lines(argv: Sequence[str]) -> Iterator[str]:
    """Put each option with its value on a line."""
    line: list[str] = []
    for word in argv:
        if word.startswith("-") and line:
            yield "  " + shlex.join(line)
            line = []
        line.append(word)
    if line:
        yield "  " + shlex.join(line)
