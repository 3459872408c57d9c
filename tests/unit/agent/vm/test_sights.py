"""What QEMU's events mean."""

from __future__ import annotations

import pytest

from agent.qemu.status import RunState
from agent.qemu.subscription import Event
from agent.vm.events import Happening, Reason
from agent.vm.sights import AWAY, Sight, Sights


def event(name: str, **data: object) -> Event:
    return Event(name, {key.replace("_", "-"): value for key, value in data.items()}, 0.0, 0.0)


def seen(sights: Sights, *events: Event) -> list[Sight]:
    return [sight for one in events if (sight := sights.see(one)) is not None]


def test_a_guest_that_stops_and_goes_on_is_told():
    sights = Sights(is_running=True)

    assert seen(sights, event("STOP"), event("RESUME")) == [
        Sight(Happening.SUSPENDED, Reason.PAUSED),
        Sight(Happening.RESUMED, Reason.UNPAUSED),
    ]


def test_a_stop_after_an_io_error_says_so_and_only_that_one():
    sights = Sights(is_running=True)
    error = event("BLOCK_IO_ERROR", action="stop", operation="write", node_name="vda", reason="No space left on device")

    told = seen(sights, error, event("STOP"), event("RESUME"), event("STOP"))

    assert told[0] == Sight(Happening.SUSPENDED, Reason.IO_ERROR, "write on vda: No space left on device")
    assert told[2].reason is Reason.PAUSED


def test_an_io_error_that_the_guest_is_told_of_stops_nothing():
    sights = Sights(is_running=True)

    assert seen(sights, event("BLOCK_IO_ERROR", action="report")) == []


@pytest.mark.parametrize(("action", "reasons"), [("pause", ["PANICKED", "PANICKED"]), ("poweroff", ["PANICKED", "PAUSED"])])
def test_a_panic_is_a_crash_and_the_stop_after_it_has_its_reason(action, reasons):
    told = seen(Sights(is_running=True), event("GUEST_PANICKED", action=action), event("STOP"))

    assert [(sight.happening.value, sight.reason.value) for sight in told] == [("CRASHED", reasons[0]), ("SUSPENDED", reasons[1])]


@pytest.mark.parametrize(("guest", "reason"), [(True, Reason.GUEST), (False, Reason.HOST)])
def test_a_reset_says_who_asked_for_it(guest, reason):
    told = seen(Sights(is_running=True), event("RESET", guest=guest, reason="x"))

    assert told == [Sight(Happening.RESET, reason, "x")]


@pytest.mark.parametrize(
    ("was_running", "state", "wanted"),
    [
        (None, RunState.PAUSED, None),
        (True, RunState.RUNNING, None),
        (True, RunState.PAUSED, Sight(Happening.SUSPENDED, Reason.PAUSED, AWAY)),
        (True, RunState.IO_ERROR, Sight(Happening.SUSPENDED, Reason.IO_ERROR, AWAY)),
        (False, RunState.RUNNING, Sight(Happening.RESUMED, Reason.UNPAUSED, AWAY)),
    ],
)
def test_what_changed_while_nobody_listened_is_found_by_asking(was_running, state, wanted):
    assert Sights(is_running=was_running).see_state(state) == wanted
