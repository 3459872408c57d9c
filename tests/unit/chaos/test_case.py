from __future__ import annotations

import random

import pytest

from agent.migration import incoming, outgoing
from tests.chaos.case import BATCH_ROUNDS, Fault, Kind, Victim, draw

CASES = [draw(7, number) for number in range(6000)]
PHASES = {
    "source": {phase.__name__ for phase in outgoing.Phase.__args__},
    "destination": {phase.__name__ for phase in incoming.Phase.__args__},
}


def test_the_same_seed_and_number_give_the_same_case():
    random.seed(1)
    assert [draw(7, number) for number in range(100)] == CASES[:100]
    assert draw(8, 0) != draw(7, 0)


def test_rounds_of_a_batch_share_their_qemus():
    for first in range(0, len(CASES), BATCH_ROUNDS):
        assert len({case.versions for case in CASES[first : first + BATCH_ROUNDS]}) == 1


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_move_meets_every_kind_of_fault(kind):
    assert {case.fault for case in CASES if case.kind is kind} == set(Fault)


def test_every_victim_is_hit():
    assert {victim for case in CASES for victim in case.victims} == set(Victim)


def test_the_phases_that_are_waited_for_are_those_of_the_machines():
    for case in CASES:
        if case.moment.side:
            assert case.moment.phase in PHASES[case.moment.side]


def test_most_faults_happen_within_60_ms_of_a_change_of_phase():
    near = [case for case in CASES if case.moment.side and case.moment.after_s <= 0.06]
    assert len(near) > 0.8 * len(CASES)


def test_only_versions_that_are_there_are_drawn():
    assert {draw(7, number, ("7.2", "10.0")).versions for number in range(0, 2000, BATCH_ROUNDS)} <= {
        ("7.2", "10.0"),
        ("7.2", "7.2"),
        ("10.0", "10.0"),
    }
