"""The destination's machine."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agent.migration import incoming as inc
from agent.migration.machine import Cause, InvalidTransition
from tests.unit.agent.migration.histories import histories

CAUSE = Cause("the coordinator gave up", "ABANDONED", by_wish=True)
EVENTS: tuple[inc.Event, ...] = (
    inc.QemuListening(),
    inc.QemuActive(),
    inc.GuestArrived(),
    inc.QemuLoaded(),
    inc.QemuGaveUp(CAUSE),
    inc.QemuExited(CAUSE),
    inc.QemuExited(CAUSE, by_guest=True),
    inc.ResumeRequested(),
    inc.GuestRuns(),
    inc.FinishRequested(),
    inc.AbandonRequested(CAUSE),
    inc.AbandonRequested(CAUSE, source_has_ended=True),
    inc.AbandonRequested(CAUSE, may_come_halved=True),
    inc.ReleaseRequested(CAUSE),
    inc.ReleaseRequested(CAUSE, is_forced=True),
    inc.DefinitionKept(),
    inc.Undone(),
)
LENGTH = 7
START: inc.Phase = inc.Reserved()
MAY_RUN_HERE = (inc.Resuming, inc.Running, inc.Finished, inc.Entering, inc.Filling, inc.Ending)


def test_a_guest_runs_here_only_after_the_token_came_for_a_loaded_guest():
    for history in histories(inc.step, START, EVENTS, LENGTH):
        for index, (before, after) in enumerate(pairwise(history.phases)):
            if isinstance(after, MAY_RUN_HERE) and not isinstance(before, MAY_RUN_HERE):
                assert isinstance(before, inc.Loaded | inc.Arrived)
                assert isinstance(history.events[index], inc.ResumeRequested)


def test_the_effect_that_runs_the_guest_comes_once_a_history():
    for history in histories(inc.step, START, EVENTS, LENGTH):
        resumed = any(isinstance(phase, inc.Resuming | inc.Entering) for phase in history.phases)

        assert history.effects.count(inc.EnsureGuestRuns()) == (1 if resumed else 0)


def test_abandoned_is_reached_only_by_histories_in_which_the_guest_never_ran_here():
    for history in histories(inc.step, START, EVENTS, LENGTH):
        if isinstance(history.phase, inc.Abandoned):
            assert not any(isinstance(phase, MAY_RUN_HERE) for phase in history.phases)


def test_abandon_is_refused_once_the_guest_may_have_run_here():
    for phase in (inc.Arrived(), inc.Entering(), inc.Filling(), inc.Resuming(), inc.Running(), inc.Finished()):
        with pytest.raises(InvalidTransition):
            inc.step(phase, inc.AbandonRequested(CAUSE))


def test_a_guest_without_its_memory_is_ended_only_when_the_source_has_ended():
    for phase in (inc.Entering(), inc.Filling()):
        after = inc.step(phase, inc.AbandonRequested(CAUSE, source_has_ended=True))

        assert after == inc.Step(inc.Ending(CAUSE), (inc.EnsureUndone(),))
        assert inc.step(after.phase, inc.Undone()).phase == inc.Lost(CAUSE)


def test_a_guest_that_came_by_post_copy_is_finished_only_when_all_of_it_is_here():
    with pytest.raises(InvalidTransition):
        inc.step(inc.Filling(), inc.FinishRequested())
    assert inc.step(inc.Filling(), inc.QemuLoaded()).phase == inc.Running()


def test_a_guest_that_ends_by_itself_once_it_is_all_here_is_finished_all_the_same():
    after = inc.step(inc.Running(), inc.QemuExited(CAUSE, by_guest=True))

    assert after == inc.Step(inc.Running())
    assert inc.step(after.phase, inc.FinishRequested()).phase == inc.Finished()


def test_a_guest_whose_qemu_ended_after_it_was_taken_over_is_kept_here_before_it_is_told_as_lost():
    for phase in (inc.Resuming(), inc.Running()):
        after = inc.step(phase, inc.QemuExited(CAUSE))

        assert after == inc.Step(inc.KeepingDefinition(CAUSE), (inc.EnsureDefinitionKept(),))
        assert inc.step(after.phase, inc.DefinitionKept()).phase == inc.Lost(CAUSE, is_kept=True)


def test_a_guest_that_was_taken_over_and_could_never_be_run_goes_back_to_the_source():
    for taken in (inc.Resuming(), inc.Entering()):
        assert inc.step(taken, inc.QemuExited(CAUSE, never_ran=True)).phase == inc.Undoing(CAUSE)
    after = inc.step(inc.Resuming(), inc.QemuExited(CAUSE, never_ran=True))
    released = inc.step(inc.Resuming(), inc.ReleaseRequested(CAUSE, is_forced=True))

    assert after == inc.Step(inc.Undoing(CAUSE), (inc.EnsureUndone(),))
    assert inc.step(released.phase, inc.Undone(never_ran=True)).phase == inc.Abandoned(CAUSE)
    assert inc.step(released.phase, inc.Undone()).phase == inc.Lost(CAUSE)


def test_a_guest_that_may_be_coming_by_post_copy_is_abandoned_only_once_the_source_has_ended():
    for phase in (inc.Listening(), inc.Loading()):
        for event in (inc.AbandonRequested(CAUSE, may_come_halved=True), inc.ReleaseRequested(CAUSE, may_come_halved=True)):
            with pytest.raises(InvalidTransition):
                inc.step(phase, event)
        ended = inc.AbandonRequested(CAUSE, source_has_ended=True, may_come_halved=True)
        assert inc.step(phase, ended).phase == inc.Undoing(CAUSE)


def test_resume_is_refused_before_the_guest_is_loaded():
    for phase in (inc.Reserved(), inc.Listening(), inc.Loading()):
        with pytest.raises(InvalidTransition):
            inc.step(phase, inc.ResumeRequested())


def test_every_phase_is_reached_and_has_a_way_to_an_end():
    reached = {h.phase for h in histories(inc.step, START, EVENTS, LENGTH)}

    assert {type(phase) for phase in reached} == set(inc.Phase.__args__)
    for start in reached:
        assert any(isinstance(h.phase, inc.FINAL) for h in histories(inc.step, start, EVENTS, LENGTH))
