"""Sizes and times as they are typed and shown."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cli import units


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("100MiB/s", 100 * 1024**2), ("1.5GB/s", 1_500_000_000), ("0", 0), ("1KiB/s", 1024), ("2000B/s", 2000)],
)
def test_a_rate_is_read_exactly(text, bytes_per_second):
    assert units.parse_bandwidth(text) == bytes_per_second


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("100", "did you mean 100MiB/s"),
        ("100MiB", "did you mean 100MiB/s"),
        ("100Mbit/s", "rates are in bytes"),
        ("100mib/s", "rates are in bytes"),
        ("-1MiB/s", "is not a rate"),
        ("1 MiB/s", "is not known"),
        ("", "is not a rate"),
        ("0MiB/s", "say 0 for no bound"),
        ("1B/s", "out of range"),
        ("2TiB/s", "out of range"),
        ("1e3MiB/s", "is not known"),
        ("٣MiB/s", "is not a rate"),
        ("\x1b[31mMiB/s", "is not a rate"),
    ],
)
def test_a_rate_that_is_none_is_refused_with_a_hint(text, hint):
    with pytest.raises(ValueError, match=hint):
        units.parse_bandwidth(text)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("300ms", Fraction(3, 10)), ("2s", 2), ("0.5s", Fraction(1, 2)), ("1m", 60), ("2000s", 2000)],
)
def test_a_time_is_read_exactly(text, duration_s):
    assert units.parse_duration(text, units.DOWNTIME) == duration_s


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("300", "did you mean 300ms or 300s"),
        ("0ms", "out of range: 1ms to 2000s"),
        ("2001s", "out of range"),
        ("1d", "not known"),
        ("soon", "is not a time"),
    ],
)
def test_a_time_that_is_none_is_refused_with_a_hint(text, hint):
    with pytest.raises(ValueError, match=hint):
        units.parse_duration(text, units.DOWNTIME)


@settings(max_examples=40)
@given(st.text())
def test_no_text_does_worse_than_a_refusal(text):
    for parse in (units.parse_bandwidth, lambda text: units.parse_duration(text, units.DOWNTIME)):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017 -- most texts raise, some do not


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [(0, "0 s"), (0.000_004, "4 µs"), (0.0042, "4.20 ms"), (0.9996, "1.00 s"), (12.34, "12.3 s"), (125, "2 min 05 s")],
)
def test_times_are_shown_with_three_digits(duration_s, shown):
    assert units.format_duration(duration_s) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(0, "0 B"), (512 * 1024**2, "512 MiB"), (1000, "0.98 KiB"), (1_500_000_000, "1.40 GiB")]
)
def test_sizes_are_shown_with_three_digits(size_bytes, shown):
    assert units.format_bytes(size_bytes) == shown
