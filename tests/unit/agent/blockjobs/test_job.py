from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.blockjobs.job import (
    TRANSITIONS,
    VERBS,
    BecameReady,
    Cancelled,
    Changed,
    Completed,
    Job,
    JobEvent,
    Outcome,
    Seen,
    Verb,
    fold,
)
from agent.qemu.block_status import JobStatus as S

EDGES = [(before, after) for before in TRANSITIONS for after in sorted(TRANSITIONS[before], key=lambda one: one.value)]
ENDS: st.SearchStrategy[JobEvent] = st.sampled_from((Completed(), Completed("Input/output error"), Cancelled()))
KNOWN = [status for status in S if status is not S.UNKNOWN]


def run(*events: JobEvent, job: Job | None = None) -> Job:
    job = job or Job("j")
    for event in events:
        job = fold(job, event)
    return job


@pytest.mark.parametrize(("before", "after"), EDGES)
def test_each_edge_of_the_table_is_taken(before: S, after: S):
    job = fold(replace(Job("j"), status=before), Changed(after))

    assert job.status is after
    assert job.is_ready is (after in (S.READY, S.STANDBY))
    assert job.outcome is None


def test_every_status_has_its_row_and_what_ends_is_never_left():
    assert set(TRANSITIONS) == set(KNOWN)
    assert TRANSITIONS[S.NULL] == frozenset()
    assert all(S.CONCLUDED in row or row <= {S.NULL, *KNOWN} for row in TRANSITIONS.values())


@pytest.mark.parametrize("verb", Verb)
def test_a_verb_is_taken_in_its_statuses_alone(verb: Verb):
    assert {status for status in KNOWN if replace(Job("j"), status=status).may(verb)} == VERBS[verb]


def test_a_mirror_that_pivots_is_completed():
    ready = run(*map(Changed, (S.CREATED, S.RUNNING, S.READY)), BecameReady())
    job = run(*map(Changed, (S.WAITING, S.PENDING)), Completed(), Changed(S.CONCLUDED), job=ready)

    assert (ready.is_ready, ready.outcome, ready.is_over) == (True, None, False)
    assert (job.outcome, job.error, job.is_over) == (Outcome.COMPLETED, "", True)


def test_an_error_at_the_end_is_a_failure_with_qemus_text():
    job = run(Changed(S.RUNNING), Changed(S.ABORTING), Completed("No space left on device"), Changed(S.CONCLUDED))

    assert (job.outcome, job.error) == (Outcome.FAILED, "No space left on device")


@pytest.mark.parametrize(("was_asked", "outcome"), [(True, Outcome.CANCELLED), (False, Outcome.FAILED)])
def test_what_a_query_shows_of_a_job_that_ended_unseen_depends_on_what_was_asked(was_asked: bool, outcome: Outcome):  # noqa: FBT001
    job = run(Seen(S.CONCLUDED, "Operation canceled"), job=Job("j", cancel_asked=was_asked))

    assert (job.outcome, job.is_over) == (outcome, True)


def test_a_query_of_a_job_that_ended_well_unseen_is_completed():
    assert run(Seen(S.READY), Seen(S.CONCLUDED)).outcome is Outcome.COMPLETED


@st.composite
def histories(draw: st.DrawFn) -> list[JobEvent]:
    """A walk along the table, with the event of its end, repeated and looked at as often as it pleases."""
    events: list[JobEvent] = []
    status, has_ended = S.UNDEFINED, False
    for _ in range(draw(st.integers(0, 14))):
        steps = sorted(TRANSITIONS[status], key=lambda one: one.value)
        if not steps:
            break
        status = draw(st.sampled_from(steps))
        if status is S.CONCLUDED and not has_ended:
            events.append(draw(ENDS))
            has_ended = True
        events += [Changed(status)] * draw(st.integers(0, 2))
        if draw(st.booleans()) and status is not S.NULL:
            events.append(Seen(status, "an error" if has_ended and draw(st.booleans()) else ""))
    return events


@given(histories(), st.booleans())
def test_in_no_history_does_an_end_change_or_readiness_go_away(events: list[JobEvent], was_asked: bool):  # noqa: FBT001
    job = Job("j", cancel_asked=was_asked)
    for event in events:
        before, job = job, fold(job, event)
        assert job.is_ready >= before.is_ready
        assert job.is_over >= before.is_over
        if before.outcome is not None:
            assert (job.outcome, job.error) == (before.outcome, before.error or job.error)
        assert fold(job, event) == job  # a repetition changes nothing


@given(st.lists(st.one_of(ENDS, st.sampled_from(KNOWN).map(Changed), st.just(BecameReady())), max_size=12))
def test_events_in_any_order_are_taken(events: list[JobEvent]):
    job = run(*events)

    ends = [event for event in events if isinstance(event, Completed | Cancelled)]
    assert (job.outcome is None) is (not ends)
