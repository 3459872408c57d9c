"""The audit log."""

from __future__ import annotations

import json
import stat

from common.audit_log import KEPT_COUNT, AuditLog


def test_a_line_has_the_time_and_what_is_known(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", wall_clock=lambda: 1_700_000_000.25)

    log.write(who="operator me", rpc="StartVm", vm="wéb\n", migration="", result="OK")

    assert json.loads((tmp_path / "audit.jsonl").read_text()) == {
        "time": "2023-11-14T22:13:20.250Z",
        "who": "operator me",
        "rpc": "StartVm",
        "vm": "wéb\n",
        "result": "OK",
    }
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_a_long_log_is_rotated_and_a_few_older_ones_are_kept(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=1)

    for number in range(KEPT_COUNT + 2):
        log.write(rpc=str(number))

    kept = {path.name: json.loads(path.read_text())["rpc"] for path in tmp_path.iterdir()}
    assert kept == {f"audit.jsonl.{age}": str(KEPT_COUNT + 2 - age) for age in range(1, KEPT_COUNT + 1)}


def test_long_facts_are_cut(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")

    log.write(rpc="StartVm", vm="x" * (16 << 20))

    assert (tmp_path / "audit.jsonl").stat().st_size < 1000
    assert json.loads((tmp_path / "audit.jsonl").read_text())["vm"].endswith(" ... (16777216 characters)")
