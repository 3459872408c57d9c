"""The convergence engine: played against a model, replayed over real transfers, and its promises for any guest and any link."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.migration.budget import Budget, Policy, TimeoutAction
from agent.migration.convergence import (
    MAX_DECISIONS,
    Bounds,
    Choice,
    Decision,
    Outlook,
    Sample,
    begin,
    change_bounds,
    first_limit_s,
    observe,
)
from agent.migration.forecast import Ending, Model, play
from common.errors import InvalidRequest

MIB = 1 << 20
RECORDED = Path(__file__).parents[3] / "transcripts" / "convergence"
SAFE = Bounds(Budget(), 0.3)
FAST = Bounds(Budget(Policy.FAST), 0.3)


def model(dirty_mib_s: float, carries_mib_s: float, *, ram_mib: float = 1024, working_set_mib: float = 512) -> Model:
    return Model(ram_mib * MIB, working_set_mib * MIB, lambda _: dirty_mib_s * MIB, lambda _: carries_mib_s * MIB)


def choices(decisions: list[Decision]) -> list[Choice]:
    return [decision.choice for decision in decisions]


# policies against the model


def test_an_idle_guest_is_switched_at_the_first_chance_with_a_short_standstill():
    outcome = play(model(0.1, 100), SAFE, give_up_s=60)

    assert (outcome.ending, outcome.decisions) == (Ending.SWITCHED, [])
    assert outcome.downtime_s <= SAFE.max_downtime_s / 8


def test_fast_begins_with_all_that_is_allowed():
    assert begin(FAST).limit_s == FAST.most_s


@pytest.mark.parametrize(("allowed_s", "most_s"), [(1.0, 0.89), (0.3, 0.26), (0.02, 0.01), (0.001, 0.001)])
def test_qemu_may_use_of_the_bound_what_leaves_time_for_the_hand_over(allowed_s: float, most_s: float):
    assert Bounds(Budget(), allowed_s).most_s == pytest.approx(most_s)


@pytest.mark.parametrize("allowed_s", [0.001, 0.01, 0.02, 0.3, 5.0])
def test_the_first_limit_is_never_above_the_bound(allowed_s: float):
    first_s = begin(Bounds(Budget(), allowed_s)).limit_s

    assert 0 < first_s <= allowed_s


def test_a_guest_that_needs_more_gets_more_once_passes_shrink_no_further():
    outcome = play(model(90, 100, working_set_mib=20), SAFE, give_up_s=120)

    assert outcome.ending is Ending.SWITCHED
    assert set(choices(outcome.decisions)) == {Choice.RAISE_DOWNTIME}
    assert first_limit_s(SAFE) < outcome.downtime_s <= SAFE.max_downtime_s


def test_a_guest_that_never_converges_ends_without_a_duration_too():
    outcome = play(model(200, 100), SAFE, give_up_s=1000)

    assert outcome.ending is Ending.ABORTED
    assert [(decision.choice, decision.is_timeout) for decision in outcome.decisions] == [(Choice.ABORT, True)]


def test_fast_throttles_a_guest_that_writes_faster_than_is_sent():
    outcome = play(model(120, 100), FAST, give_up_s=1000)

    assert outcome.ending is Ending.SWITCHED
    assert choices(outcome.decisions)[0] is Choice.THROTTLE
    assert outcome.downtime_s <= FAST.max_downtime_s


def test_safe_never_throttles():
    outcome = play(model(120, 100), SAFE, give_up_s=1000)

    assert Choice.THROTTLE not in choices(outcome.decisions)


@pytest.mark.parametrize("policy", list(Policy))
def test_a_pause_lets_it_end_inside_its_duration(policy: Policy):
    bounds = Bounds(Budget(policy, 60.0, TimeoutAction.PAUSE), 0.05)

    outcome = play(model(3000, 100), bounds, give_up_s=200)

    assert outcome.ending is Ending.SWITCHED
    assert choices(outcome.decisions)[-1] is Choice.PAUSE
    assert outcome.at_s <= 60.0 * 1.02


def test_post_copy_is_chosen_only_where_both_sides_can():
    budget = Budget(Policy.FAST, 30.0, TimeoutAction.POST_COPY)

    can = play(model(3000, 100), Bounds(budget, 0.05, can_post_copy=True), give_up_s=100)
    cannot = play(model(3000, 100), Bounds(budget, 0.05), give_up_s=100)

    assert choices(can.decisions)[-1] is Choice.POST_COPY
    assert choices(cannot.decisions)[-1] is Choice.ABORT


def test_a_dip_of_the_network_holds_the_switch_over_back_and_its_end_lets_it_go():
    dip = Model(1024 * MIB, 64 * MIB, lambda _: 40 * MIB, lambda at_s: (10 if 15 < at_s < 19 else 100) * MIB)

    outcome = play(dip, Bounds(Budget(), 0.25), give_up_s=100)

    held = [decision.at_s for decision in outcome.decisions if decision.choice is Choice.HOLD]
    assert outcome.ending is Ending.SWITCHED
    assert not 15 < outcome.at_s < 19
    assert all(15 <= at_s <= 20 for at_s in held)


def test_a_network_that_stays_slow_is_not_waited_for():
    slower = Model(1024 * MIB, 64 * MIB, lambda _: 5 * MIB, lambda at_s: (20 if at_s > 10.6 else 100) * MIB)

    outcome = play(slower, SAFE, give_up_s=200)

    assert outcome.ending is Ending.SWITCHED


def watch(rates_mib_s: Iterable[float], bounds: Bounds, *, rest_mib: int = 500) -> tuple[Outlook, list[Decision]]:
    """Let the engine look at the first pass of a transfer each half second."""
    outlook, decisions = begin(bounds), list[Decision]()
    for number, rate in enumerate(rates_mib_s, start=1):
        outlook, decision = observe(outlook, Sample(number * 0.5, 1, rest_mib * MIB, round(rate * MIB)), bounds)
        if decision is not None:
            decisions.append(decision)
    return outlook, decisions


def test_one_low_reading_is_no_dip():
    _, decisions = watch([*[100] * 6, 20, *[100] * 6, 30, 100], SAFE)

    assert decisions == []


def test_nothing_is_raised_on_the_first_low_reading():
    outlook, _ = watch([100] * 6, SAFE)
    for at_s, pass_count, rate in ((3.5, 2, 100), (4.0, 3, 100), (4.1, 4, 20)):
        outlook, decision = observe(outlook, Sample(at_s, pass_count, 20 * MIB, rate * MIB), SAFE)
        assert (decision is None) is (pass_count != 3)

    assert outlook.limit_s < SAFE.max_downtime_s


@pytest.mark.parametrize("before", [4, 6, 30])
def test_a_dip_is_held_for_six_seconds_however_short_the_network_was_known(before: int):
    _, decisions = watch([*[100] * before, *[5] * 40], SAFE)

    assert choices(decisions) == [Choice.HOLD, Choice.RELEASE]
    assert decisions[1].at_s == pytest.approx(before * 0.5 + 6.5, abs=0.5)


def test_a_network_that_dips_again_and_again_is_not_held_for_ever_and_leaves_decisions_to_end_by():
    outlook, decisions = watch([*[100] * 8, *[5, 5, 100, 100] * 200, *[100] * 6], SAFE)
    last, decision = observe(outlook, Sample(2000.0, 50, MIB, 100 * MIB), Bounds(Budget(max_duration_s=1000.0), 0.3))

    assert not outlook.is_holding
    assert len(decisions) < MAX_DECISIONS
    assert (last.is_ending, decision and decision.choice) == (True, Choice.ABORT)


def test_a_guest_is_not_paused_on_one_low_reading_at_the_start():
    bounds = Bounds(Budget(Policy.MUST_FINISH, 20.0, TimeoutAction.PAUSE), 0.3)

    _, decisions = watch([4, 100, 100, 100, 100], bounds, rest_mib=400)

    assert decisions == []


def test_a_time_that_is_short_is_seen_before_it_is_over():
    bounds = Bounds(Budget(Policy.MUST_FINISH, 4.0, TimeoutAction.PAUSE), 0.3)

    _, decisions = watch([100] * 3, bounds, rest_mib=400)

    assert [(one.choice, one.at_s) for one in decisions] == [(Choice.PAUSE, 1.0)]


def test_a_client_that_allows_more_is_heeded_at_once():
    outlook, decision = change_bounds(begin(SAFE), Sample(3.0, 4, 50 * MIB, 100 * MIB), 2.0)

    assert (outlook.qemu_limit_s, decision.choice) == (2.0, Choice.BOUNDS)


# recorded transfers


def replay(name: str, bounds: Bounds) -> tuple[list[Decision], float]:
    """Feed the engine with a recorded transfer; return what it decided, and when QEMU would have switched over, at last at its end.

    What is left to send is known at the beginning of a pass only.
    """
    lines = json.loads((RECORDED / f"{name}.json").read_text())
    outlook, decisions = begin(bounds), list[Decision]()
    for index, line in enumerate(lines):
        sample = Sample(**line)
        is_new_pass = sample.pass_count > outlook.pass_count
        if is_new_pass and sample.remaining_bytes <= sample.bytes_per_second * outlook.qemu_limit_s:
            return decisions, sample.at_s
        if is_new_pass or index % 10 == 0:
            outlook, decision = observe(outlook, sample, bounds)
            if decision is not None:
                decisions.append(decision)
    return decisions, float(lines[-1]["at_s"])


def test_replayed_an_idle_guest_needs_no_decision():
    decisions, _ = replay("idle", SAFE)

    assert decisions == []


def test_replayed_a_guest_that_writes_slower_than_the_link_is_switched():
    decisions, switched_at_s = replay("slower-than-the-link", SAFE)

    assert switched_at_s < 2.0
    assert set(choices(decisions)) <= {Choice.RAISE_DOWNTIME}


def test_replayed_a_guest_that_writes_faster_is_never_switched_beyond_the_bound_and_ends_in_time():
    decisions, _ = replay("faster-than-the-link", Bounds(Budget(max_duration_s=10.0), 0.1))

    assert choices(decisions)[-1] is Choice.ABORT
    assert 10.0 <= decisions[-1].at_s <= 10.6
    assert all(decision.limit_s <= 0.1 for decision in decisions)


def test_replayed_a_guest_that_writes_faster_is_throttled_by_fast():
    decisions, _ = replay("faster-than-the-link", Bounds(Budget(Policy.FAST), 0.1))

    assert choices(decisions)[0] is Choice.THROTTLE


def test_replayed_bursts_are_switched_in_a_quiet_moment():
    _, switched_at_s = replay("bursts", SAFE)

    assert switched_at_s % 3.0 > 1.4


def test_replayed_a_dip_of_the_network_raises_nothing():
    decisions, _ = replay("dips", Bounds(Budget(), 0.02))

    assert Choice.HOLD in choices(decisions)
    assert not [one for one in decisions if one.choice is Choice.RAISE_DOWNTIME and 6.5 < one.at_s < 10.5]


# promises

_RATES = st.floats(0.5, 4000).map(lambda mib_s: mib_s * MIB)
_BUDGETS = st.builds(
    Budget,
    policy=st.sampled_from([Policy.SAFE, Policy.FAST]),
    max_duration_s=st.sampled_from([0.0, 5.0, 30.0, 100.0]),
    on_timeout=st.sampled_from([TimeoutAction.ABORT, TimeoutAction.PAUSE]),
)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Draw any guest and a link that changes now and then."""
    rates = draw(st.lists(_RATES, min_size=1, max_size=5))
    writes = draw(st.lists(st.floats(0, 4000).map(lambda mib_s: mib_s * MIB), min_size=1, max_size=5))
    lasts_s = draw(st.floats(0.5, 20))

    def at(values: list[float], at_s: float) -> float:
        return values[int(at_s / lasts_s) % len(values)]

    ram_bytes = draw(st.floats(16, 4096)) * MIB
    return Model(ram_bytes, ram_bytes * draw(st.floats(0, 1)), lambda at_s: at(writes, at_s), lambda at_s: at(rates, at_s))


@given(models(), _BUDGETS, st.floats(0.001, 3.0))
@settings(max_examples=150)
def test_for_any_guest_and_link_decisions_are_few_and_the_bound_holds(any_model: Model, budget: Budget, allowed_s: float):
    outcome = play(any_model, Bounds(budget, allowed_s), give_up_s=150)

    raised = [decision.limit_s for decision in outcome.decisions if decision.choice is Choice.RAISE_DOWNTIME]
    assert len(outcome.decisions) <= MAX_DECISIONS + 1
    assert all(decision.limit_s <= allowed_s for decision in outcome.decisions)
    assert raised == sorted(set(raised))
    if Choice.PAUSE not in choices(outcome.decisions):  # which the user chose
        assert outcome.downtime_s <= allowed_s * 1.0001


@given(models(), st.sampled_from([5.0, 30.0, 100.0]), st.floats(0.001, 3.0))
@settings(max_examples=100)
def test_for_any_guest_and_link_it_is_over_when_its_time_is_over(any_model: Model, duration_s: float, allowed_s: float):
    outcome = play(any_model, Bounds(Budget(max_duration_s=duration_s), allowed_s), give_up_s=duration_s + 1.0)

    assert outcome.ending is not Ending.ENDLESS


# what is refused


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_duration_s": 0.5}, "max-duration: 0.5 s"),
        ({"max_duration_s": -1.0}, "max-duration: -1 s"),
        ({"max_duration_s": 8 * 24 * 3600.0}, "max-duration"),
        ({"policy": Policy.MUST_FINISH, "max_duration_s": 60.0}, "must-finish and on-timeout abort"),
        ({"policy": Policy.MUST_FINISH, "on_timeout": TimeoutAction.PAUSE}, "needs a max-duration"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(wrong: dict[str, object], told: str):
    with pytest.raises(InvalidRequest, match=told):
        Budget(**wrong)  # type: ignore[arg-type]
