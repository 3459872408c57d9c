"""A plan in words and tables, and what was predicted beside what came true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from common.rpc.status import calls_to
from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Undecided
from coordinator.cli.plain import enum_name, seconds, to_plain
from coordinator.cli.screen import columns, pairs
from coordinator.cli.units import format_bytes, format_duration, format_rate
from ferry.common.v1 import plan_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.table import Table

    from coordinator.cli.link import Coordinator
    from coordinator.cli.screen import Format, Screen

_STYLES: Final = {
    plan_pb2.Finding.SEVERITY_BLOCKER: "bold red",
    plan_pb2.Finding.SEVERITY_WARNING: "yellow",
}


async def run_plan(coordinator: Coordinator, request: pb.PlanMigrationRequest, screen: Screen, output: Format) -> ExitCode:
    """Ask for a plan and show it; the code says whether anything stands in the way."""
    plan = None
    with calls_to(coordinator.title):
        async for response in coordinator.stub.PlanMigration(request):
            if response.HasField("plan"):
                plan = response.plan
            else:
                screen.note(f"{response.step} ...")
    if plan is None:
        raise Undecided("the coordinator ended without a plan; ask again", reason="PLAN_MISSING")
    screen.show(to_plain(plan), lambda: plan_table(plan), output)
    blockers = sum(one.severity == plan_pb2.Finding.SEVERITY_BLOCKER for one in plan.findings)
    where = f"{plan.vm_name} from {plan.source_host} to {plan.destination_host}"
    if blockers:
        screen.fail(f"{where}: cannot be moved so: {blockers} {'thing stands' if blockers == 1 else 'things stand'} in the way")
        return ExitCode.REFUSED
    screen.note(f"{where}: nothing stands in the way", "bold green")
    return ExitCode.DONE


def plan_table(plan: plan_pb2.Plan) -> RenderableType:
    """Show a plan: what was found, and what the move is going to be."""
    parts: list[RenderableType] = []
    if plan.findings:
        parts += [_findings(plan), Text()]
    if plan.HasField("forecast"):
        parts.append(_forecast(plan.forecast))
    return Group(*parts)


def comparison(migration: pb.Migration) -> Table | None:
    """Put what a plan said beside what came true; None without a plan or before the end."""
    if not migration.HasField("forecast") or not migration.HasField("downtime"):
        return None
    forecast, progress = migration.forecast, migration.progress
    actual = (
        ("duration", forecast.duration_seconds, seconds(progress.elapsed), format_duration),
        ("downtime", forecast.downtime_seconds, seconds(migration.downtime.total), format_duration),
        ("sent", forecast.transferred_bytes, float(progress.ram_transferred_bytes), format_bytes),
        ("passes", forecast.pass_count, float(progress.pass_count), _count),
    )
    rows = [(name, _span(span, form), form(value), _verdict(span, value)) for name, span, value, form in actual]
    if forecast.HasField("disk_seconds"):
        span, copied_s = forecast.disk_seconds, sum(seconds(leg.duration) for leg in migration.phases if leg.name == "Mirroring")
        rows.insert(0, ("disks", _span(span, format_duration), format_duration(copied_s), _verdict(span, copied_s)))
    return columns(("", "PREDICTED", "ACTUAL", ""), rows)


def _findings(plan: plan_pb2.Plan) -> Table:
    rows = [
        (
            Text(enum_name(plan_pb2.Finding.Severity.DESCRIPTOR, one.severity).lower(), _STYLES.get(one.severity, "")),
            one.side or "both",
            one.code,
            one.text,
        )
        for one in plan.findings
    ]
    return columns(("FINDING", "SIDE", "CODE", "WHAT"), rows)


def _forecast(forecast: plan_pb2.Forecast) -> RenderableType:
    rate = forecast.measured_bytes_per_second
    dirty = forecast.measured_dirty_bytes_per_second
    measured = [
        ("memory", f"{format_bytes(forecast.memory_bytes)}, of which about {format_bytes(forecast.used_bytes)} are not zero"),
        ("the guest writes", _writes(forecast) if dirty.high else "nothing"),
        ("the way carries", f"{format_rate(rate.likely)} ({format_rate(rate.low)} to {format_rate(rate.high)})"),
    ]
    disks = []
    if forecast.HasField("disk_seconds"):
        copied = f"{format_bytes(forecast.disk_bytes)} in {_span(forecast.disk_seconds, format_duration)}, before memory is sent"
        disks = [("disks", copied)]
    predicted = [
        *disks,
        ("duration", _span(forecast.duration_seconds, format_duration)),
        ("downtime", _span(forecast.downtime_seconds, format_duration)),
        ("to be sent", _span(forecast.transferred_bytes, format_bytes)),
        ("passes", _span(forecast.pass_count, _count)),
        ("ends", forecast.strategy),
    ]
    return Group(Text("measured", "bold"), pairs(measured), Text(), Text("predicted", "bold"), pairs(predicted))


def _writes(forecast: plan_pb2.Forecast) -> str:
    dirty = forecast.measured_dirty_bytes_per_second
    again = ""
    if forecast.working_set_bytes < forecast.memory_bytes:
        again = f", the same {format_bytes(forecast.working_set_bytes)} again and again"
    return f"{format_rate(dirty.likely)} ({format_rate(dirty.low)} to {format_rate(dirty.high)}){again}"


def _span(span: plan_pb2.Span, form: Callable[[float], str]) -> str:
    low, likely, high = form(span.low), form(span.likely), form(span.high)
    return likely if low == high else f"{likely} ({low} to {high})"


def _count(value: float) -> str:
    return f"{value:.0f}"


def _verdict(span: plan_pb2.Span, value: float) -> str:
    if span.low <= value <= span.high:
        return "as predicted"
    return "less" if value < span.low else "more"
