"""Ends and stops in words."""

from __future__ import annotations

import pytest

from agent.qemu.endings import disk_error_of, of_exit, of_status, of_stop, refusal_of, reset_of, stop_of
from agent.qemu.status import MigrationStatus, RunState
from agent.qemu.subscription import Event


def event(name: str, **data: object) -> Event:
    return Event(name, data, at_s=0.0, received_s=0.0)


@pytest.mark.parametrize(
    ("shutdown", "reason", "is_guests", "words"),
    [
        ("guest-shutdown", "GUEST_SHUT_DOWN", True, "powered itself off, on host-a during the migration"),
        ("guest-reset", "GUEST_SHUT_DOWN", True, "rebooted"),
        ("guest-panic", "GUEST_PANICKED", True, "panicked"),
        ("host-qmp-quit", "QEMU_ENDED", False, "told to quit"),
        ("host-signal", "QEMU_ENDED", False, "by a signal"),
        ("", "QEMU_ENDED", False, "ended unexpectedly during the migration: out of memory"),
        ("what comes next", "QEMU_ENDED", False, "ended unexpectedly"),
    ],
)
def test_an_exit_is_told_as_what_it_was(shutdown, reason, is_guests, words):
    ending = of_exit(shutdown, "out of memory", during="migration", where="host-a")

    assert (ending.reason, ending.is_guests) == (reason, is_guests)
    assert words in ending.text
    assert "host-a" in ending.text


def test_an_exit_on_the_only_host_there_is_names_none():
    assert of_exit("", "", during="save").text == "the guest's QEMU ended unexpectedly during the save"


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        (MigrationStatus.COMPLETED, "COMPLETED", "the save is complete"),
        (MigrationStatus.CANCELLED, "CANCELLED", "the save was cancelled"),
        (MigrationStatus.FAILED, "TRANSFER_FAILED", "the save failed: no space"),
        (MigrationStatus.NONE, "NOT_ACTIVE", "the save is not active"),
    ],
)
def test_each_end_of_a_migration_has_its_word(status, reason, text):
    ending = of_status(status, "no space", what="the save")

    assert ending is not None
    assert (ending.reason, ending.text) == (reason, text)


def test_what_goes_on_has_not_ended():
    assert not any(of_status(status, "", what="") for status in MigrationStatus if not status.is_final and status.value != "none")


def test_only_stops_for_reasons_of_the_guest_are_endings():
    for state in RunState:
        ending = of_stop(state, "", during="migration", where="host-a", vm="web")

        is_guests = state in {
            RunState.IO_ERROR,
            RunState.GUEST_PANICKED,
            RunState.SHUTDOWN,
            RunState.WATCHDOG,
            RunState.INTERNAL_ERROR,
        }
        assert (ending is not None) is is_guests


@pytest.mark.parametrize(
    ("seen", "state", "detail"),
    [
        (
            event("BLOCK_IO_ERROR", action="stop", operation="write", device="", **{"node-name": "d0"}, reason="No space left"),
            RunState.IO_ERROR,
            "write on d0: No space left",
        ),
        (event("GUEST_PANICKED", action="pause"), RunState.GUEST_PANICKED, ""),
        (event("WATCHDOG", action="pause"), RunState.WATCHDOG, ""),
    ],
)
def test_an_event_before_a_stop_tells_its_reason(seen, state, detail):
    assert stop_of(seen) == (state, detail)


def test_a_node_that_qemu_has_named_is_told_as_the_disk_that_it_is_of_or_as_a_disk():
    seen = event("BLOCK_IO_ERROR", action="report", operation="read", **{"node-name": "#block012"}, reason="Input/output error")
    error = disk_error_of(seen)

    assert error is not None
    assert (error.node, error.stops) == ("#block012", False)
    assert error.named() == "read on a disk: Input/output error"
    assert error.named("vdb") == "read on vdb: Input/output error"
    assert disk_error_of(event("BLOCK_IO_ERROR", action="ignore")) is None
    assert disk_error_of(event("STOP")) is None


def test_a_guest_that_cannot_be_moved_is_told_with_what_to_do():
    assert "mend what its disk stands on, then: ferry vm resume web" in refusal_of(RunState.IO_ERROR, "web")
    assert refusal_of(RunState.INMIGRATE, "web") == "VM web is inmigrate: it cannot be moved"


def test_events_that_stop_no_guest_are_passed_over():
    for seen in (event("BLOCK_IO_ERROR", action="report"), event("GUEST_PANICKED", action="poweroff"), event("STOP")):
        assert stop_of(seen) is None


def test_a_reset_says_whose_it_was():
    assert "rebooted" in reset_of(event("RESET", guest=True))
    assert "was reset" in reset_of(event("RESET", guest=False))
    assert not reset_of(event("STOP"))
