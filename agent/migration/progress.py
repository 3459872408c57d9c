"""What a transfer has done so far, and when its turning points were. Pure.

All instants of a timeline are of one clock, the CLOCK_BOOTTIME of its host, so that they outlive the agent and nobody steps them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent.qemu.figures import Figures
from agent.qemu.status import MigrationReport, RamReport

_BITS = 8
_MEGA = 1_000_000
_INSTANTS = (
    "started_at_s",
    "stopped_at_s",
    "settling_at_s",
    "continued_at_s",
    "post_copy_at_s",
    "completed_at_s",
    "resumed_at_s",
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Numbers of a transfer. Source: qapi/migration.json, MigrationInfo and MigrationStats.

    Attributes:
        pass_goal_pages: how many pages are sent when this pass is over, where QEMU does not count passes; else 0.
    """

    elapsed_s: float = 0.0
    ram_total_bytes: int = 0
    ram_transferred_bytes: int = 0
    ram_remaining_bytes: int = 0
    normal_page_count: int = 0
    zero_page_count: int = 0
    bytes_per_second: int = 0
    dirty_bytes_per_second: int = 0
    pass_count: int = 0
    pass_goal_pages: int = 0
    throttle_percent: int = 0
    expected_downtime_s: float = 0.0
    setup_s: float = 0.0
    figures: Figures = field(default_factory=Figures)


@dataclass(frozen=True, slots=True)
class Era:
    """What instants on record count from.

    Attributes:
        boot_id: the boot of the host; empty in records of agents that took instants of the wall clock.
        ahead_s: how far the wall clock was ahead of CLOCK_BOOTTIME.
    """

    boot_id: str = ""
    ahead_s: float = 0.0

    def shift_s(self, now: Era) -> float:
        """Return what to add to instants of this era to have them in another; by the wall clock, where the host booted between."""
        return 0.0 if self.boot_id == now.boot_id else self.ahead_s - now.ahead_s


@dataclass(frozen=True, slots=True)
class Leg:
    """A named part of a span of time."""

    name: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the turning points of a transfer were; None before they are reached.

    Attributes:
        started_at_s: `migrate` was sent.
        pass_at_s: QEMU began each pass.
        stopped_at_s: the guest stopped.
        settling_at_s: copies of disks began to be settled.
        continued_at_s: `migrate-continue` was sent.
        post_copy_at_s: QEMU reported `postcopy-active` for the first time.
        completed_at_s: QEMU reported `completed`.
        resumed_at_s: the destination answered Resume.
        ran_for_s: how long the guest had run there by then, by the destination's clock.
        qemu_downtime_ms: QEMU's own figure.
        qemu_total_ms: QEMU's own figure.
    """

    started_at_s: float | None = None
    pass_at_s: tuple[float, ...] = ()
    stopped_at_s: float | None = None
    continued_at_s: float | None = None
    completed_at_s: float | None = None
    resumed_at_s: float | None = None
    ran_for_s: float = 0.0
    qemu_downtime_ms: int | None = None
    qemu_total_ms: int | None = None
    post_copy_at_s: float | None = None
    settling_at_s: float | None = None

    def shifted(self, by_s: float) -> Timeline:
        """Return the same with instants of another era."""
        instants = {name: value + by_s for name in _INSTANTS if (value := getattr(self, name)) is not None}
        return replace(self, pass_at_s=tuple(at_s + by_s for at_s in self.pass_at_s), **instants)

    def downtime_legs(self) -> tuple[Leg, ...]:
        """Return the parts of the downtime in order: `stop`, `device`, `resume`; empty before the guest runs again.

        `stop` is from the guest's STOP to `migrate-continue` sent, `device` from there to `completed`, in post-copy to
        `postcopy-active`, `resume` from there to the answer, less the time that the guest already ran. Their sum is the downtime.
        Where disks are copied, the end of `stop` is `settle`: the copies are made equal.
        """
        stopped, continued, completed, resumed = (
            self.stopped_at_s,
            self.continued_at_s,
            self.completed_at_s if self.post_copy_at_s is None else self.post_copy_at_s,
            self.resumed_at_s,
        )
        if stopped is None or completed is None or resumed is None:
            return ()
        if continued is None:
            continued = stopped
        settling = continued if self.settling_at_s is None else min(max(self.settling_at_s, stopped), continued)
        return (
            Leg("stop", max(settling - stopped, 0.0)),
            *(() if self.settling_at_s is None else (Leg("settle", continued - settling),)),
            Leg("device", max(completed - continued, 0.0)),
            Leg("resume", max(resumed - completed - self.ran_for_s, 0.0)),
        )


def progress_of(report: MigrationReport, before: Progress | None = None) -> Progress | None:
    """Return the numbers of a report that has any.

    QEMU tells how much it throttles only while it does, so that of `before` stays: it never takes less in one migration.
    """
    ram = report.ram
    if ram is None:  # a destination, which has figures of a post-copy alone
        return None if report.figures == Figures() else Progress(figures=report.figures)
    pass_count, goal_pages = _passes(report, ram, before)
    return Progress(
        elapsed_s=(report.total_time_ms or 0) / 1000,
        ram_total_bytes=ram.total_bytes,
        ram_transferred_bytes=ram.transferred_bytes,
        ram_remaining_bytes=ram.remaining_bytes,
        normal_page_count=ram.normal_count,
        zero_page_count=ram.duplicate_count,
        bytes_per_second=int(ram.mbps * _MEGA / _BITS),
        dirty_bytes_per_second=ram.dirty_pages_rate * ram.page_size_bytes,
        pass_count=pass_count,
        pass_goal_pages=goal_pages,
        throttle_percent=report.cpu_throttle_percentage or (0 if before is None else before.throttle_percent),
        expected_downtime_s=(report.expected_downtime_ms or 0) / 1000,
        setup_s=(report.setup_time_ms or 0) / 1000,
        figures=report.figures,
    )


def _passes(report: MigrationReport, ram: RamReport, before: Progress | None) -> tuple[int, int]:
    """Return the number of the pass, and how many pages are sent when it is over.

    `dirty-sync-count` is the number of the pass on QEMU 7.2 and 10.0; 11.1 reads the bitmap of changed pages, and counts that, some
    ten times a second. There a pass is over once as many pages are sent as were left when it began.
    """
    goal_pages = 0 if before is None else before.pass_goal_pages
    if not report.syncs_by_time and not goal_pages:
        return ram.dirty_sync_count, 0
    if not ram.total_bytes or not ram.page_size_bytes:
        return 0, 0
    xbzrle = report.figures.xbzrle
    sent_pages = ram.normal_count + ram.duplicate_count + (0 if xbzrle is None else xbzrle.page_count)
    number = 1 if before is None or not goal_pages else before.pass_count
    goal_pages = goal_pages or ram.total_bytes // ram.page_size_bytes
    if sent_pages >= goal_pages:
        return number + 1, sent_pages + max(ram.remaining_bytes // ram.page_size_bytes, 1)
    return number, goal_pages
