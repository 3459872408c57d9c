from __future__ import annotations

from tests.chaos.report import tables


def result(**changes):
    case = {"kind": "plain", "versions": ["7.2", "10.0"], "source": "host-b", "victims": ["source agent"], "fault": "killed"}
    one = {"case": case, "ending": {"state": "succeeded"}, "hit": ["Switching", "Loaded"], "gap_s": 0.2, "wrong": []}
    return {**one, "excuse": "", "was_restarted": False, **changes}


def test_rounds_are_counted_by_what_happened_and_what_came_of_it():
    lost = {"ending": {"state": "failed"}, "excuse": "the QEMU that had the guest was ended", "was_restarted": True, "gap_s": None}

    lines = list(tables([result(), result(wrong=["left: x"], ending={"state": "failed"}), result(**lost), {"wrong": ["broke"]}]))

    assert lines[0] == "3 rounds, 1 with findings."
    assert "| plain | 3 | 1 | 1 | 1 | 1 |" in lines
    assert "| 10.0 -> 7.2 | 3 | 1 | 1 | 1 | 1 |" in lines
    assert "| source agent: killed | 3 | 1 | 1 | 1 | 1 |" in lines
    assert lines[-3] == "Ended as: failed 2, succeeded 1."
