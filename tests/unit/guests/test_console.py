"""The judgement over a guest's console lines."""

from __future__ import annotations

import pytest

from tests.guests.console import Story, Tick


def _story(*lines: bytes) -> Story:
    story = Story()
    for number, line in enumerate(lines):
        story.feed(line + b"\n", at_s=number / 100)
    return story


def test_a_tick_keeps_its_numbers_and_the_time_when_its_line_ended() -> None:
    story = Story()

    story.feed(b"ferry tick: 16 MiB\ntick 0 gen 2 sw", at_s=1.0)
    story.feed(b"eep 7 ok\n", at_s=2.0)

    assert story.ticks == [Tick(counter=0, generation=2, sweep=7, bad_count=0, arrived_at_s=2.0)]


def test_lines_of_the_linux_guest_are_ticks_too() -> None:
    story = _story(
        b"ferry guest: counter 4 pattern ok gen 2 sweep 1\r",
        b"ferry guest: counter 5 pattern bad 3 gen 2 sweep 1\r",
    )

    assert [(tick.counter, tick.bad_count) for tick in story.ticks] == [(4, 0), (5, 3)]


def test_firmware_may_talk_before_the_first_tick() -> None:
    story = _story(b"SeaBIOS (version 1.16)", b"panic=-1", b"tick 0 gen 2 sweep 0 ok")

    story.assert_continuous()


def test_kernel_messages_and_the_power_button_are_no_complaint() -> None:
    story = _story(
        b"ferry guest: counter 0 pattern ok gen 2 sweep 0",
        b"ferry guest: power button",
        b"[    5.938331] reboot: Power down",
    )

    story.assert_continuous()


def test_no_tick_at_all_is_not_continuous() -> None:
    with pytest.raises(AssertionError, match="not ticked"):
        _story(b"ferry tick: 16 MiB").assert_continuous()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"tick 7 gen 2 sweep 0 ok", "line 2: counter 7 after 7"),
        (b"tick 6 gen 2 sweep 0 ok", "line 2: counter 6 after 7"),
        (b"tick 9 gen 2 sweep 0 ok", "line 2: counter 9 after 7"),
        (b"tick 8 gen 2 sweep 0 bad 1", "line 2: 1 bad pages at counter 8"),
        (b"BAD page 9 expected 3 found 2 at 4", "line 2: BAD page 9 expected 3 found 2 at 4"),
        (b"titick 8ck 8 gen 2 sweep 0 ok", "line 2: titick 8ck 8 gen 2 sweep 0 ok"),
        (b"ferry tick: 16 MiB", "line 2: ferry tick: 16 MiB"),
        (b"[ 3.7] Kernel panic - not syncing", "line 2: .* Kernel panic - not syncing"),
    ],
    ids=["twice", "back", "forward", "bad", "page", "torn", "reset", "panic"],
)
def test_what_no_whole_single_guest_says_is_a_complaint(line: bytes, complaint: str) -> None:
    story = _story(b"tick 7 gen 2 sweep 0 ok", line)

    with pytest.raises(AssertionError, match=complaint):
        story.assert_continuous()


def test_a_lost_memory_check_at_boot_is_a_complaint() -> None:
    story = _story(b"BAD memory: room for MiB 16", b"tick 0 gen 2 sweep 0 ok")

    assert story.complaints == ["line 1: BAD memory: room for MiB 16"]


def test_the_longest_gap_is_between_the_ticks_around_it() -> None:
    story = Story()
    for counter, at_s in enumerate((1.0, 1.1, 3.1, 3.2)):
        story.feed(b"tick %d gen 2 sweep 0 ok\n" % counter, at_s)

    assert story.max_gap_s(since_s=1.0, until_s=3.3) == pytest.approx(2.0)


def test_a_gap_that_began_before_the_asked_time_counts_whole() -> None:
    story = Story()
    for counter, at_s in enumerate((1.0, 3.0, 3.1)):
        story.feed(b"tick %d gen 2 sweep 0 ok\n" % counter, at_s)

    assert story.max_gap_s(since_s=2.9, until_s=3.1) == pytest.approx(2.0)


def test_a_guest_that_stopped_ticking_has_a_gap_up_to_now() -> None:
    story = _story(b"tick 0 gen 2 sweep 0 ok", b"tick 1 gen 2 sweep 0 ok")

    assert story.max_gap_s(since_s=0.0, until_s=60.0) == pytest.approx(59.99)


def test_gaps_name_the_tick_before_each_silence() -> None:
    story = _story(b"tick 0 gen 2 sweep 0 ok", b"tick 1 gen 2 sweep 0 ok")

    assert [(tick.counter, round(length_s, 3)) for tick, length_s in story.gaps()] == [(0, 0.01)]
