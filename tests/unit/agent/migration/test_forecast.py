"""What is forecast follows from what was measured."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.migration.budget import Budget, Policy, TimeoutAction
from agent.migration.forecast import HANDOVER_IN_POST_COPY_S, Measured, Span, forecast
from agent.migration.order import Options
from agent.migration.post_copy import PostCopy, When

MIB = 1 << 20
GIB = 1 << 30


def around(value: float) -> Span:
    return Span(value * 0.8, value, value * 1.25)


def measured(*, used_mib: int = 1024, rate_mib_s: float = 100, dirty_mib_s: float = 1, working_set_mib: int = 64) -> Measured:
    return Measured(
        memory_bytes=GIB,
        used_bytes=used_mib * MIB,
        bytes_per_second=around(rate_mib_s * MIB),
        setup_s=0.0,
        dirty_bytes_per_second=around(dirty_mib_s * MIB),
        working_set_bytes=working_set_mib * MIB,
    )


def test_an_idle_guest_takes_what_its_memory_takes():
    found = forecast(measured(), Options())

    assert found.duration_s.likely == pytest.approx(10.24, rel=0.1)
    assert found.duration_s.low < 10.24 < found.duration_s.high
    assert found.strategy == "it converges by itself"
    assert found.ends


def test_memory_of_zeroes_is_nearly_for_free():
    full, empty = forecast(measured(), Options()), forecast(measured(used_mib=64), Options())

    assert empty.duration_s.likely < full.duration_s.likely / 5


def test_a_wished_bandwidth_bounds_the_way():
    found = forecast(measured(), Options(bandwidth_bytes_per_second=10 * MIB))

    assert found.duration_s.likely == pytest.approx(102.4 + 6.4, rel=0.03)  # the working set goes twice


def test_a_guest_that_writes_faster_than_the_way_carries_is_told_beforehand():
    found = forecast(measured(dirty_mib_s=300, working_set_mib=512), Options())

    assert not found.ends
    assert "would not converge" in found.strategy


def test_a_duration_that_is_too_short_is_told_beforehand():
    options = Options(budget=Budget(max_duration_s=5.0))

    assert "would not be done in the 5 s" in forecast(measured(), options).strategy


def test_must_finish_ends_inside_its_duration_by_post_copy():
    budget = Budget(Policy.MUST_FINISH, 30.0, TimeoutAction.POST_COPY)
    options = Options(budget=budget, post_copy=PostCopy(When.ALLOWED))

    found = forecast(measured(dirty_mib_s=300, working_set_mib=512), options)

    assert found.ends
    assert found.duration_s.likely <= 30.0
    assert "post-copy" in found.strategy


def test_a_pause_stands_still_for_all_of_it():
    found = forecast(measured(), Options(pause=True))

    assert found.downtime_s.likely == pytest.approx(found.duration_s.likely, rel=0.1)


def test_immediate_post_copy_hardly_stands_still():
    found = forecast(measured(dirty_mib_s=300), Options(post_copy=PostCopy(When.IMMEDIATELY)))

    assert found.downtime_s.likely <= 2 * HANDOVER_IN_POST_COPY_S
    assert found.ends


def test_the_rest_follows_in_post_copy_without_the_bandwidth_of_pre_copy():
    post_copy = PostCopy(When.IMMEDIATELY)
    bounded = Options(bandwidth_bytes_per_second=100 * MIB, post_copy=post_copy)
    slowed = replace(bounded, post_copy=replace(post_copy, bandwidth_bytes_per_second=10 * MIB))

    found, slow = forecast(measured(), bounded), forecast(measured(), slowed)

    assert found.duration_s.low < 10.24 / 10
    assert found.duration_s.high > 10.24
    assert slow.duration_s.likely == pytest.approx(102.4, rel=0.03)


def test_post_copy_that_begins_in_time_and_ends_too_late_is_told_beforehand():
    budget = Budget(Policy.MUST_FINISH, 5.0, TimeoutAction.POST_COPY)
    options = Options(budget=budget, post_copy=PostCopy(When.ALLOWED))

    short = forecast(measured(), options)
    close = forecast(measured(), replace(options, budget=replace(budget, max_duration_s=12.0)))
    ample = forecast(measured(), replace(options, budget=replace(budget, max_duration_s=60.0)))

    assert "not in the 5 s of --max-duration" in short.strategy
    assert "in the 12 s of --max-duration only if" in close.strategy
    assert "--max-duration" not in ample.strategy


def test_what_channels_compress_is_sent_as_less_and_takes_as_long():
    plain, packed = forecast(measured(), Options()), forecast(replace(measured(), sent_part=0.25), Options())

    assert packed.sent_bytes.likely == pytest.approx(plain.sent_bytes.likely / 4, rel=0.01)
    assert packed.duration_s == plain.duration_s


def test_passes_are_counted_as_qemu_does():
    found = forecast(measured(dirty_mib_s=0), Options()).pass_count

    assert (found.low, found.likely, found.high) == (2, 3, 4)


@given(
    st.integers(0, 1024), st.floats(0.5, 20_000), st.floats(0, 20_000), st.integers(0, 1024), st.sampled_from([0, MIB, 100 * MIB])
)
def test_any_measurement_gives_a_forecast_whose_parts_are_in_order(used: int, rate: float, dirty: float, set_: int, bound: int):
    found = forecast(
        measured(used_mib=used, rate_mib_s=rate, dirty_mib_s=dirty, working_set_mib=set_),
        Options(bandwidth_bytes_per_second=bound, budget=Budget(max_duration_s=20.0)),
    )

    for span in (found.duration_s, found.downtime_s, found.sent_bytes, found.pass_count):
        assert 0 <= span.low <= span.likely <= span.high
        assert math.isfinite(span.high)
