"""Passes of a QEMU that counts them, and of one that reads the bitmap of changed pages by time."""

from __future__ import annotations

from agent.migration.progress import Progress, progress_of
from agent.qemu.status import decode_migration

PAGES = 1000
PAGE_BYTES = 4096


def seen(*steps: tuple[int, int], syncs_by_time: bool = True) -> list[int]:
    """Return the pass after each step of pages sent and pages left; QEMU counts a sync at each."""
    progress: Progress | None = None
    passes = []
    for syncs, (sent, left) in enumerate(steps, start=2):
        ram = {
            **dict.fromkeys(("transferred", "dirty-pages-rate", "mbps", "normal-bytes", "pages-per-second", "multifd-bytes"), 0),
            **dict.fromkeys(("precopy-bytes", "downtime-bytes", "postcopy-bytes", "postcopy-requests"), 0),
            "dirty-sync-missed-zero-copy": 0,
            "dirty-sync-count": syncs,
            "page-size": PAGE_BYTES,
            "total": PAGES * PAGE_BYTES,
            "remaining": left * PAGE_BYTES,
            "normal": sent - sent // 4,
            "duplicate": sent // 4,
        }
        report = {"status": "active", "ram": ram, **({"remaining": 1} if syncs_by_time else {})}
        progress = progress_of(decode_migration(report), progress)
        assert progress is not None
        passes.append(progress.pass_count)
    return passes


def test_the_first_pass_lasts_until_all_was_sent_once_however_often_the_bitmap_is_read():
    assert seen((0, 1000), (400, 700), (999, 300), (1000, 300), (1100, 250)) == [1, 1, 1, 2, 2]


def test_each_later_pass_sends_what_was_left_when_it_began():
    assert seen((1000, 300), (1299, 100), (1300, 100), (1399, 50), (1400, 50)) == [2, 2, 3, 3, 4]


def test_a_qemu_that_counts_passes_is_believed():
    assert seen((0, 1000), (400, 600), (900, 100), syncs_by_time=False) == [2, 3, 4]


def test_the_last_report_which_tells_less_keeps_the_count():
    before = progress_of(decode_migration({"status": "active"}))
    assert before is None
    progress = Progress(pass_count=3, pass_goal_pages=5000)
    ram = {
        **dict.fromkeys(("transferred", "dirty-pages-rate", "mbps", "normal-bytes", "pages-per-second", "multifd-bytes"), 0),
        **dict.fromkeys(("precopy-bytes", "downtime-bytes", "postcopy-bytes", "postcopy-requests"), 0),
        "dirty-sync-missed-zero-copy": 0,
        "dirty-sync-count": 40,
        "page-size": PAGE_BYTES,
        "total": PAGES * PAGE_BYTES,
        "remaining": 0,
        "normal": 4000,
        "duplicate": 10,
    }
    after = progress_of(decode_migration({"status": "completed", "ram": ram}), progress)
    assert after is not None
    assert after.pass_count == 3
