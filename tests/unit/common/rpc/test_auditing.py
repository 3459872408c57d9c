"""What was done stays written, however much is refused."""

from __future__ import annotations

import json
from pathlib import Path

from common.rpc.audit import Call
from common.rpc.auditing import REFUSALS_A_MINUTE, WINDOW_S, Auditing


def call(who: str, result: str = "OK", *, by: str = "") -> Call:
    return Call("StartVm", who, by, "web", "", result, "" if result == "OK" else "NOT_ALLOWED", "")


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_done_is_written_with_who_ordered_it(tmp_path: Path):
    Auditing(tmp_path).tell(call("coordinator c", by="operator alice"))

    [line] = lines(tmp_path / "audit.jsonl")
    assert (line["who"], line["by"], line["rpc"]) == ("coordinator c", "operator alice", "StartVm")
    assert not (tmp_path / "audit-refused.jsonl").exists()


def test_refusals_are_bounded_for_each_caller_and_counted(tmp_path: Path):
    now_s = 0.0
    auditing = Auditing(tmp_path, clock=lambda: now_s)
    for _ in range(REFUSALS_A_MINUTE + 40):
        auditing.tell(call("viewer v", "PERMISSION_DENIED"))
    auditing.tell(call("viewer w", "PERMISSION_DENIED"))
    now_s = WINDOW_S
    auditing.tell(call("viewer v", "PERMISSION_DENIED"))

    found = lines(tmp_path / "audit-refused.jsonl")
    assert [line["who"] for line in found].count("viewer w") == 1
    assert len(found) == REFUSALS_A_MINUTE + 3
    assert "40 more refusals of this caller" in found[-2]["text"]
    assert not (tmp_path / "audit.jsonl").exists()


def test_many_callers_do_not_fill_memory(tmp_path: Path):
    auditing = Auditing(tmp_path)
    for number in range(1500):
        auditing.tell(call(f"viewer {number}", "PERMISSION_DENIED"))

    assert len(auditing._windows) <= 1000
