"""The judge of the fault injector finds what is wrong, and excuses only what no software can save."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.case import Fault, Kind, Victim, draw
from tests.chaos.verdict import Ending, Observed, judge

CASE = replace(draw(1, 0), kind=Kind.ENCRYPTED, source="host-a", victims=(Victim.SOURCE_AGENT,), fault=Fault.KILL)
MOVED = Ending("succeeded", "host-b")
KEPT = Ending("failed", "host-a", "why", "REASON")


def moved(**changes: object) -> Observed:
    seen = Observed(MOVED, ["host-b"], ["host-b"], longest_gap_s=0.2, second=Ending("succeeded", "host-a"))
    seen.second_speakers = ["host-a"]
    for name, value in changes.items():
        setattr(seen, name, value)
    return seen


def test_a_move_that_went_well_has_nothing_wrong():
    assert judge(CASE, moved()) == []


def test_a_move_that_was_given_up_has_nothing_wrong():
    assert judge(CASE, moved(ending=KEPT, speakers=["host-a"], qemus=["host-a"])) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speakers": ["host-a", "host-b"]}, "two QEMUs"),
        ({"speakers": []}, "nothing excuses that"),
        ({"speakers": ["host-a"]}, "the record says succeeded"),
        ({"complaints": ["line 3: counter 7 after 9"]}, "console: line 3"),
        ({"ending": Ending("waiting", "", "waits")}, "not final"),
        ({"longest_gap_s": 9.0}, "stood still for 9.0 s"),
        ({"leftovers": ["/tmp/.ferry-1"]}, "left: /tmp/.ferry-1"),
        ({"findings": ["host-a: MARKER_FILE"]}, "doctor: host-a"),
        ({"second": Ending("refused", "host-b", "busy", "VM_BUSY")}, "the second move refused"),
        ({"second_speakers": ["host-b"]}, "after the second move"),
        ({"disk_errors": ["slot 3"]}, "disk: slot 3"),
        ({"followed": [("migration fence 1 --host host-a", 1, "NOT_IN_DOUBT")]}, "advised command failed"),
        ({"was_restarted": True}, "the guest was lost, and nothing excuses that"),
    ],
)
def test_what_is_wrong_is_said(changes, words):
    assert any(words in text for text in judge(CASE, moved(**changes)))


@pytest.mark.parametrize(
    ("victims", "source_phase", "destination_phase", "is_excused"),
    [
        ((Victim.SOURCE_QEMU,), "Transferring", "Loading", True),
        ((Victim.SOURCE_QEMU,), "HandedOver", "Running", False),
        ((Victim.DESTINATION_QEMU,), "Transferring", "Loading", False),
        ((Victim.DESTINATION_QEMU,), "Switching", "Loaded", False),
        ((Victim.DESTINATION_QEMU,), "HandedOver", "Running", True),
        ((Victim.SOURCE_QEMU, Victim.DESTINATION_QEMU), "Transferring", "Loading", True),
        ((Victim.SOURCE_AGENT,), "Switching", "Loaded", False),
    ],
)
def test_a_lost_guest_is_excused_only_where_the_qemu_that_had_it_was_ended(victims, source_phase, destination_phase, is_excused):
    case = replace(CASE, victims=victims)
    seen = moved(
        was_restarted=True,
        has_hit_qemu=True,
        source_phase=source_phase,
        destination_phase=destination_phase,
        ending=Ending("failed", "", "lost", "QEMU_ENDED"),
    )
    assert (judge(case, seen) == []) is is_excused
