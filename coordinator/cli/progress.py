"""A running migration on stderr: a live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.cli.decisions import decision_words
from coordinator.cli.disks_view import copies_told, disk_numbers
from coordinator.cli.exits import FINAL_STATES
from coordinator.cli.plain import seconds
from coordinator.cli.screen import printable
from coordinator.cli.units import format_bytes, format_duration, format_rate
from coordinator.cli.words import state_word
from ferry.coordinator.v1 import coordinator_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coordinator.cli.screen import Screen

# A plain line at every change of state, at a new pass no more often than this, and at least this often.
_PASS_INTERVAL_S = 1.0
_LINE_INTERVAL_S = 5.0
_BAR_WIDTH = 40
# While the guest changes hands the numbers stand still.
_MOVING_STATES = frozenset({pb.Migration.STATE_TRANSFERRING, pb.Migration.STATE_CANCELLING, pb.Migration.STATE_POST_COPY})


class Progress(Protocol):
    """Shows the states of one migration as they come."""

    def update(self, migration: pb.Migration) -> None:
        """Show a new state."""

    def note(self, text: str) -> None:
        """Tell something beside the state."""

    def ask(self, question: str) -> None:
        """Write a question and keep quiet until `resume`; `update` is still allowed."""

    def resume(self) -> None:
        """Show states again."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_progress(screen: Screen) -> Progress:
    """Choose what suits stderr; the caller closes it."""
    return LiveProgress(screen) if screen.notes.is_terminal else PlainProgress(screen)


class _Notes:
    """Notes on stderr, held back while a question is open."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._is_asking = False
        self._held: list[str] = []
        self._has_told_disks = False

    def tell_disks(self, migration: pb.Migration) -> None:
        """Say once which disks are copied."""
        if migration.progress.disks and not self._has_told_disks:
            self._has_told_disks = True
            for text in copies_told(migration.progress.disks):
                self.note(text)

    def note(self, text: str) -> None:
        """Write the text as a line, now or after the question."""
        if self._is_asking:
            self._held.append(text)
        else:
            self._screen.note(text)

    def ask(self, question: str) -> None:
        """Write the question and then nothing until `resume`."""
        self._is_asking = True
        self._screen.ask(question)

    def resume(self) -> None:
        """Write what was held back."""
        self._is_asking = False
        for text in self._held:
            self._screen.note(text)
        self._held.clear()


class PlainProgress(_Notes):
    """A line now and then."""

    def __init__(self, screen: Screen, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(screen)
        self._now_s = now_s
        self._shown: tuple[int, int, int] | None = None
        self._shown_at_s = 0.0

    def update(self, migration: pb.Migration) -> None:
        """Write a line if there is something new to say."""
        self.tell_disks(migration)
        key = (migration.state, migration.progress.pass_count, len(migration.progress.decisions))
        quiet_s = self._now_s() - self._shown_at_s
        is_due = (
            self._shown is None
            or (key[0], key[2]) != (self._shown[0], self._shown[2])
            or (key != self._shown and quiet_s >= _PASS_INTERVAL_S)
            or quiet_s >= _LINE_INTERVAL_S
        )
        if not is_due or self._is_asking or migration.state in FINAL_STATES:
            return
        self._shown, self._shown_at_s = key, self._now_s()
        numbers = ", ".join(numbers_of(migration))
        self._screen.note(f"{heading_of(migration)}{': ' if numbers else ''}{numbers}")

    def close(self) -> None:
        """Write what was held back."""
        self.resume()


class LiveProgress(_Notes):
    """A block of three lines that is drawn over."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen)
        self._live: Live | None = None
        self._latest: pb.Migration | None = None

    def update(self, migration: pb.Migration) -> None:
        """Draw the block anew."""
        self.tell_disks(migration)
        self._latest = migration
        if self._is_asking:
            return
        if self._live is None:
            self._live = Live(console=self._screen.notes, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(block_of(migration), refresh=True)

    def ask(self, question: str) -> None:
        """Put the question in place of the block."""
        self._take_away()
        super().ask(question)

    def resume(self) -> None:
        """Write what was held back and draw the block again."""
        super().resume()
        if self._latest is not None:
            self.update(self._latest)

    def close(self) -> None:
        """Take the block away for good."""
        self._take_away()
        super().resume()

    def _take_away(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def heading_of(migration: pb.Migration) -> str:
    """Say what moves where and how far it is."""
    return f"{migration.vm_name}: {migration.source_host or '?'} -> {migration.destination_host}  {_stage(migration)}"


def numbers_of(migration: pb.Migration) -> Iterator[str]:
    """Give the numbers of a transfer that there are."""
    progress = migration.progress
    if migration.state not in _MOVING_STATES or not progress.ram_total_bytes:
        yield from disk_numbers(progress.disks)
        return
    yield f"pass {progress.pass_count}"
    yield f"{_percent(migration):.0f} %"
    yield f"{format_bytes(progress.ram_remaining_bytes)} of {format_bytes(progress.ram_total_bytes)} left"
    yield format_rate(progress.bytes_per_second)
    if migration.state == pb.Migration.STATE_POST_COPY:
        yield f"{progress.figures.postcopy_request_count} pages waited for"
        return
    if progress.dirty_bytes_per_second:
        yield f"dirtied {format_rate(progress.dirty_bytes_per_second)}"
    if progress.HasField("expected_downtime"):
        yield f"expected downtime {format_duration(seconds(progress.expected_downtime))}"
    if progress.throttle_percent:
        yield f"throttled {progress.throttle_percent} %"
    if progress.decisions:
        yield decision_words(progress.decisions[-1])


def block_of(migration: pb.Migration) -> Group:
    """Draw the block of a terminal."""
    heading = Text.assemble(
        (printable(migration.vm_name), "bold"),
        f"  {printable(migration.source_host or '?')} -> {printable(migration.destination_host)}  ",
        (printable(_stage(migration)), "cyan"),
    )
    numbers = list(numbers_of(migration))
    if not numbers:
        return Group(heading)
    bar = Table.grid(padding=(0, 1))
    bar.add_row("  ", ProgressBar(100, _percent(migration), width=_BAR_WIDTH), ", ".join(numbers[:3]))
    return Group(heading, bar, Text(f"    {', '.join(numbers[3:])}"))


def _stage(migration: pb.Migration) -> str:
    words = state_word(migration)
    if migration.state == pb.Migration.STATE_PREPARING and migration.step:
        words += f" ({migration.step})"
    is_queued = migration.state == pb.Migration.STATE_PREPARING and migration.error_reason == "QUEUED"
    if (is_queued or migration.state == pb.Migration.STATE_WAITING) and migration.error:
        words += f": {migration.error}"
    elif migration.progress.HasField("elapsed"):
        words += f", {format_duration(seconds(migration.progress.elapsed))}"
    return words


def _percent(migration: pb.Migration) -> float:
    progress = migration.progress
    if not progress.ram_total_bytes:
        return 100 * sum(disk.copied_bytes for disk in progress.disks) / max(1, sum(disk.total_bytes for disk in progress.disks))
    done_bytes = max(0, progress.ram_total_bytes - progress.ram_remaining_bytes)
    return 100 * done_bytes / max(1, progress.ram_total_bytes)
