"""Progress on something that is no terminal."""

from __future__ import annotations

from coordinator.cli.progress import PlainProgress, block_of
from coordinator.cli.screen import Screen
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import migration

MIB = 1024**2


def transferring(pass_count: int) -> pb.Migration:
    state = migration(pb.Migration.STATE_TRANSFERRING)
    state.progress.ram_total_bytes = 512 * MIB
    state.progress.ram_remaining_bytes = 128 * MIB
    state.progress.pass_count = pass_count
    state.progress.bytes_per_second = 100 * MIB
    state.progress.dirty_bytes_per_second = 4 * MIB
    state.progress.expected_downtime.FromMilliseconds(140)
    state.progress.elapsed.FromMilliseconds(3900)
    return state


def test_a_line_is_written_for_each_change_and_not_for_each_update(capsys):
    times_s = iter([0.0, 0.0, 0.1, 0.2, 0.2, 1.5, 1.5, 1.6])
    progress = PlainProgress(Screen(), now_s=lambda: next(times_s, 1.7))

    progress.update(migration(pb.Migration.STATE_PREPARING, step="prepare"))
    progress.update(migration(pb.Migration.STATE_PREPARING, step="prepare"))
    progress.update(transferring(1))
    progress.update(transferring(2))
    progress.update(transferring(2))

    numbers = "75 %, 128 MiB of 512 MiB left, 100 MiB/s, dirtied 4.00 MiB/s, expected downtime 140 ms"
    assert capsys.readouterr().err.splitlines() == [
        "web: host-a -> host-b  preparing (prepare)",
        f"web: host-a -> host-b  transferring, 3.90 s: pass 1, {numbers}",
        f"web: host-a -> host-b  transferring, 3.90 s: pass 2, {numbers}",
    ]


def test_in_post_copy_the_line_counts_the_pages_that_the_guest_waited_for(capsys):
    state = transferring(2)
    state.state = pb.Migration.STATE_POST_COPY
    state.progress.figures.postcopy_request_count = 7

    PlainProgress(Screen()).update(state)

    numbers = "pass 2, 75 %, 128 MiB of 512 MiB left, 100 MiB/s, 7 pages waited for"
    assert capsys.readouterr().err.splitlines() == [f"web: host-a -> host-b  post-copy, 3.90 s: {numbers}"]


def test_nothing_is_written_while_a_question_is_open(capsys):
    progress = PlainProgress(Screen())

    progress.ask("cancel? ")
    progress.update(transferring(1))
    quiet = capsys.readouterr().err
    progress.resume()
    progress.update(transferring(1))

    assert quiet == "cancel? "
    assert "pass 1" in capsys.readouterr().err


def test_the_block_of_a_terminal_has_a_bar_and_the_numbers(capsys):
    Screen().data.print(block_of(transferring(3)))

    heading, bar, numbers = capsys.readouterr().out.splitlines()
    assert heading.split() == ["web", "host-a", "->", "host-b", "transferring,", "3.90", "s"]
    assert "━" in bar
    assert "pass 3, 75 %, 128 MiB of 512 MiB left" in bar
    assert numbers.strip() == "100 MiB/s, dirtied 4.00 MiB/s, expected downtime 140 ms"
