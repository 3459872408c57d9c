from __future__ import annotations

import json
import threading
import time

from tests.chaos.watch import PhaseWatch


def write(path, phase):
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"body": {"phase": {"name": phase, "fields": {}}}}))
    new.replace(path)


def wait(is_so):
    limit_s = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < limit_s
        time.sleep(0.001)


def test_phases_are_seen_in_the_order_of_the_records_and_the_moment_is_acted_on_once(tmp_path):
    write(tmp_path / "old.json", "Transferring")
    acted = []
    is_moment = lambda side, phase: (side, phase) == ("source", "Switching")  # noqa: E731
    with PhaseWatch({"source": tmp_path}, is_moment, lambda: acted.append(time.monotonic()), time.monotonic() + 60) as watch:
        for phase in ("Begun", "Transferring", "Switching", "Sent"):
            write(tmp_path / "new.json", phase)
            wait(lambda phase=phase: watch.seen.latest("source") == phase)

    assert [phase for _, _, phase in watch.seen.phases] == ["Begun", "Transferring", "Switching", "Sent"]
    assert watch.migration_id == "new"
    assert len(acted) == 1
    assert watch.seen.latest("source", before_s=acted[0]) == "Switching"


def test_without_the_moment_it_acts_when_the_time_is_over(tmp_path):
    acted = threading.Event()
    with PhaseWatch({"source": tmp_path}, lambda *_: False, acted.set, time.monotonic() + 0.01):
        assert acted.wait(5)


def test_a_record_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    with PhaseWatch({"source": tmp_path}, lambda *_: False, lambda: None, time.monotonic() + 60) as watch:
        (tmp_path / "new.json").write_text("{")
        time.sleep(0.01)
        write(tmp_path / "new.json", "Begun")
        wait(lambda: watch.seen.latest("source") == "Begun")
    assert watch.error is None
