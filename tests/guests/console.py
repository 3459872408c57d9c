"""What a test guest said on its serial console, and when it arrived.

A VM of a test has its serial port in a file, opened for appending by the source's QEMU and by the
destination's on the same machine. So the file is the guest's one story: a second running copy
shows as doubled or torn lines, lost memory as `BAD`, a reset as a counter that starts again.

`Story` is pure: bytes and times in, ticks and complaints out. `Console` follows a file in a thread
of its own, so that a busy event loop does not spoil the times. Times are `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

_TICKS = (
    re.compile(
        rb"tick (?P<counter>\d+) gen (?P<generation>\d+) sweep (?P<sweep>\d+)"
        rb" (?:ok|bad (?P<bad>\d+))"
    ),
    re.compile(
        rb"ferry guest: counter (?P<counter>\d+) pattern (?:ok|bad (?P<bad>\d+))"
        rb" gen (?P<generation>\d+) sweep (?P<sweep>\d+)"
    ),
)
_HARMLESS = re.compile(rb"\s*|ferry (?:tick|guest|disk): power button|\[[ \d.]+\] .*")
_ALARMING = re.compile(rb"BAD|panic|Oops|BUG|lockup|stall|segfault", re.IGNORECASE)
_SHOWN_COMPLAINTS = 8
_POLL_S = 0.001
_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Tick:
    """One line of the guest.

    Attributes:
        counter: counts from 0 at boot, by 1.
        generation: how often the guest has begun to rewrite its memory, plus 1.
        sweep: how often it has checked all of its memory.
        bad_count: pages found wrong since boot.
        arrived_at_s: when the line was read here.
    """

    counter: int
    generation: int
    sweep: int
    bad_count: int
    arrived_at_s: float


class Story:
    """All that a guest has said so far, judged line by line."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.complaints: list[str] = []
        self._rest = b""
        self._line_count = 0

    def feed(self, chunk: bytes, at_s: float) -> None:
        """Take the next bytes, which arrived at `at_s`; a line counts from its end on."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line_count += 1
            self._judge(line.rstrip(b"\r"), at_s)

    def gaps(self) -> tuple[tuple[Tick, float], ...]:
        """Return each silence between two ticks: the tick before it, and its length in seconds."""
        return tuple((before, after.arrived_at_s - before.arrived_at_s) for before, after in pairwise(tuple(self.ticks)))

    def max_gap_s(self, since_s: float, until_s: float) -> float:
        """Return the longest silence that touches the time from `since_s` to `until_s`.

        The silence at `until_s` counts too, so a guest that stands still cannot look well.
        """
        times = [tick.arrived_at_s for tick in tuple(self.ticks)]
        before = [at_s for at_s in times if at_s <= since_s]
        within = [at_s for at_s in times if since_s < at_s <= until_s]
        if not before and not within:
            return until_s - since_s
        edges = [*before[-1:], *within, until_s]
        return max(after - earlier for earlier, after in pairwise(edges))

    def assert_continuous(self) -> None:
        """Fail unless there is exactly one guest whose memory and counter are whole.

        Raises:
            AssertionError: no tick, a counter that does not follow its predecessor, a page that
                the guest found wrong, or a line that no single guest writes.
        """
        if not self.ticks:
            raise AssertionError("the guest has not ticked")
        if self.complaints:
            shown = "\n  ".join(self.complaints[:_SHOWN_COMPLAINTS])
            more = len(self.complaints) - _SHOWN_COMPLAINTS
            raise AssertionError(f"the guest is not whole:\n  {shown}" + f"\n  and {more} more" * (more > 0))

    def _judge(self, line: bytes, at_s: float) -> None:
        tick = _parse_tick(line, at_s)
        if tick is None:
            if self._is_alarming(line):
                self._complain(line.decode(errors="backslashreplace"))
            return
        if self.ticks:
            last = self.ticks[-1]
            if tick.counter != last.counter + 1:
                self._complain(f"counter {tick.counter} after {last.counter}")
            if tick.bad_count > last.bad_count:
                self._complain(f"{tick.bad_count} bad pages at counter {tick.counter}")
        self.ticks.append(tick)

    def _is_alarming(self, line: bytes) -> bool:
        """Tell whether a line other than a tick is wrong; firmware and kernels may talk at boot."""
        if not self.ticks:
            return line.startswith(b"BAD")
        return _HARMLESS.fullmatch(line) is None or _ALARMING.search(line) is not None

    def _complain(self, text: str) -> None:
        self.complaints.append(f"line {self._line_count}: {text}")


class Console:
    """Follows a serial log from its first byte, also one that QEMU has yet to create.

    Use it as a context manager; the file stays the caller's.
    """

    def __init__(self, path: Path, *, story: Story | None = None, poll_s: float = _POLL_S) -> None:
        self.path = path
        self.story = story or Story()
        self._poll_s = poll_s
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"console {path}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """All ticks so far."""
        return tuple(self.story.ticks)

    @property
    def counter(self) -> int:
        """The guest's last counter, -1 before the first."""
        return self.story.ticks[-1].counter if self.story.ticks else -1

    def max_gap_s(self, since_s: float | None = None, until_s: float | None = None) -> float:
        """Return the longest silence, from the first tick and up to now unless said otherwise."""
        first_s = self.story.ticks[0].arrived_at_s if self.story.ticks else 0.0
        return self.story.max_gap_s(
            first_s if since_s is None else since_s,
            time.monotonic() if until_s is None else until_s,
        )

    def assert_continuous(self) -> None:
        """See `Story.assert_continuous`."""
        self.story.assert_continuous()

    async def wait_ticks(self, count: int = 1, *, timeout_s: float = _WAIT_S) -> Tick:
        """Wait for `count` ticks more than there are now, and return the last one.

        Raises:
            TimeoutError: they did not come; the text ends with what the guest said last.
        """
        wanted = len(self.story.ticks) + count
        return await self._wait(lambda: len(self.story.ticks) >= wanted, f"{count} ticks", timeout_s)

    async def wait_sweeps(self, count: int = 2, *, timeout_s: float = _WAIT_S) -> Tick:
        """Wait until the guest has finished `count` checks of its memory from the next tick on.

        With 2, at least one of them began after this call.

        Raises:
            TimeoutError: as for `wait_ticks`.
        """
        now = await self.wait_ticks(timeout_s=timeout_s)
        return await self._wait(lambda: self.story.ticks[-1].sweep >= now.sweep + count, f"{count} sweeps", timeout_s)

    async def _wait(self, is_so: Callable[[], bool], wanted: str, timeout_s: float) -> Tick:
        if not await asyncio.to_thread(self._wait_in_thread, is_so, timeout_s):
            tail = self._tail()
            raise TimeoutError(f"{self.path}: no {wanted} in {timeout_s} s; the guest's last words:\n{tail}")
        return self.story.ticks[-1]

    def _wait_in_thread(self, is_so: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: is_so() or self._closing.is_set(), timeout_s) and is_so()

    def _tail(self) -> str:
        try:
            return self.path.read_bytes()[-600:].decode(errors="backslashreplace")
        except FileNotFoundError:
            return "(no such file)"

    def _follow(self) -> None:
        while not self.path.exists():
            if self._closing.wait(self._poll_s):
                return
        with self.path.open("rb", buffering=0) as file:
            is_last = False
            while not is_last:
                is_last = self._closing.wait(self._poll_s)
                chunk = file.read(1 << 20)
                if chunk:
                    with self._changed:
                        self.story.feed(chunk, time.monotonic())
                        self._changed.notify_all()


def _parse_tick(line: bytes, at_s: float) -> Tick | None:
    for pattern in _TICKS:
        if found := pattern.fullmatch(line):
            return Tick(
                counter=int(found["counter"]),
                generation=int(found["generation"]),
                sweep=int(found["sweep"]),
                bad_count=int(found["bad"] or 0),
                arrived_at_s=at_s,
            )
    return None
