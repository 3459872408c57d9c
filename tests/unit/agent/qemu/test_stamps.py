"""QEMU's wall clock stamps, while somebody sets the wall clock."""

from __future__ import annotations

import pytest

from agent.qemu.stamps import Stamps


class Clocks:
    """A host whose wall clock can be set."""

    def __init__(self) -> None:
        self.boot_s = 100.0
        self.ahead_s = 1_700_000_000.0

    def stamps(self) -> Stamps:
        """Read stamps on this host."""
        return Stamps(lambda: self.boot_s, lambda: self.boot_s + self.ahead_s)

    def stamp(self) -> float:
        """Stamp an event as QEMU does."""
        return self.boot_s + self.ahead_s


def test_an_event_that_was_read_late_happened_when_it_was_stamped():
    clocks = Clocks()
    stamps, stamp_s = clocks.stamps(), clocks.stamp()
    clocks.boot_s += 3.0

    assert stamps.instant_of(stamp_s) == pytest.approx(100.0, abs=0.001)


@pytest.mark.parametrize("step_s", [-172_800.0, -600.0, -1.0, 1.0, 600.0])
def test_an_event_that_was_stamped_before_the_clock_was_set_happened_when_it_did(step_s: float):
    clocks = Clocks()
    stamps, stamp_s = clocks.stamps(), clocks.stamp()
    clocks.boot_s += 0.01
    clocks.ahead_s += step_s

    assert stamps.instant_of(stamp_s) == pytest.approx(100.0, abs=0.001)


@pytest.mark.parametrize("step_s", [-172_800.0, -600.0, -1.0, 1.0, 600.0])
def test_an_event_that_was_stamped_after_the_clock_was_set_happened_when_it_did(step_s: float):
    clocks = Clocks()
    stamps = clocks.stamps()
    clocks.ahead_s += step_s
    stamp_s = clocks.stamp()
    clocks.boot_s += 0.01

    assert stamps.instant_of(stamp_s) == pytest.approx(100.0, abs=0.001)


def test_an_event_without_a_stamp_happened_when_it_was_read():
    assert Clocks().stamps().instant_of(0.0) == 100.0
