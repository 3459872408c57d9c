"""Who owns the guest, from what both agents say."""

from __future__ import annotations

from itertools import product

import pytest

from coordinator.halves import Half, HalfState, Location
from coordinator.ownership import Decision, decide

SOURCES = {
    "none": None,
    "Begun": (HalfState.PREPARING, Location.SOURCE),
    "Transferring": (HalfState.TRANSFERRING, Location.SOURCE),
    "Switching": (HalfState.SWITCHING, Location.SWITCHING),
    "Cancelling": (HalfState.CANCELLING, Location.SOURCE),
    "Sent": (HalfState.HANDING_OVER, Location.SWITCHING),
    "HandedOver": (HalfState.HANDED_OVER, Location.DESTINATION),
    "Retired": (HalfState.SUCCEEDED, Location.DESTINATION),
    "Kept": (HalfState.FAILED, Location.SOURCE),
    "Cancelled": (HalfState.CANCELLED, Location.SOURCE),
    "Lost": (HalfState.FAILED, Location.NOWHERE),
}
DESTINATIONS = {
    "none": None,
    "Listening": (HalfState.PREPARING, Location.SOURCE),
    "Loading": (HalfState.TRANSFERRING, Location.SOURCE),
    "Loaded": (HalfState.SWITCHING, Location.SWITCHING),
    "Resuming": (HalfState.HANDING_OVER, Location.DESTINATION),
    "Running": (HalfState.HANDED_OVER, Location.DESTINATION),
    "Finished": (HalfState.SUCCEEDED, Location.DESTINATION),
    "Undoing": (HalfState.CANCELLING, Location.SOURCE),
    "Abandoned": (HalfState.FAILED, Location.SOURCE),
    "Lost": (HalfState.FAILED, Location.NOWHERE),
}
EVERY_PAIR = list(product(SOURCES, DESTINATIONS))


def half(phase: str, kind: tuple[HalfState, Location] | None) -> Half | None:
    if kind is None:
        return None
    state, location = kind
    return Half(
        state=state,
        phase=phase,
        status="",
        location=location,
        is_final=state in {HalfState.SUCCEEDED, HalfState.FAILED, HalfState.CANCELLED},
        error="",
        error_reason="",
        vm_name="web",
        vm_uuid="",
        guest_ran=False,
        waiting_for="",
        resume_token=b"",
        keep_paused=False,
        options=b"",
        progress=b"",
        downtime=b"",
        phases=(),
        warnings=(),
    )


def decision(source: str, destination: str) -> Decision:
    return decide(half(source, SOURCES[source]), half(destination, DESTINATIONS[destination]))


@pytest.mark.parametrize(("source", "destination"), EVERY_PAIR)
def test_a_guest_that_the_destination_took_over_is_never_rolled_back(source: str, destination: str):
    if destination in {"Resuming", "Running", "Finished"}:
        assert decision(source, destination) is Decision.FINISH


@pytest.mark.parametrize(("source", "destination"), EVERY_PAIR)
def test_a_guest_that_was_sent_is_never_rolled_back(source: str, destination: str):
    if source in {"Sent", "HandedOver", "Retired"} and destination != "Lost":
        assert decision(source, destination) is Decision.FINISH


@pytest.mark.parametrize(("source", "destination"), EVERY_PAIR)
def test_only_a_source_that_kept_its_guest_or_never_began_is_rolled_back(source: str, destination: str):
    if decision(source, destination) is Decision.ROLL_BACK:
        assert source in {"Kept", "Cancelled", "none"}
        assert destination not in {"Resuming", "Running", "Finished"}


def test_a_source_at_work_is_followed():
    for source in ("Transferring", "Switching", "Cancelling"):
        assert decision(source, "Loading") is Decision.FOLLOW


def test_nothing_irrevocable_is_begun_anew():
    assert decision("none", "none") is Decision.BEGIN
    assert decision("Begun", "none") is Decision.BEGIN
    assert decision("Begun", "Listening") is Decision.BEGIN


def test_a_lost_source_whose_guest_may_be_whole_at_the_destination_is_for_an_operator():
    assert decision("Lost", "Loaded") is Decision.FENCE
    assert decision("Lost", "Loading") is Decision.LOST
    assert decision("Lost", "none") is Decision.LOST


def test_a_guest_that_ended_at_the_destination_is_lost():
    assert decision("Sent", "Lost") is Decision.LOST
