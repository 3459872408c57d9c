"""The source's machine."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest

from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import outgoing_steps
from agent.migration.machine import Cause, InvalidTransition
from tests.unit.agent.migration.histories import histories

CAUSE = Cause("the user asked for it", "CANCELLED", by_wish=True)
EVENTS: tuple[out.Event, ...] = (
    out.PerformRequested(),
    out.PerformRequested(has_disks=True),
    out.MirrorsReady(),
    out.MirrorsSettled(),
    out.QemuActive(),
    out.QemuAtSwitchover(),
    out.QemuAtSwitchover(has_mirrors=True),
    out.PostCopyRequested(),
    out.QemuInPostCopy(),
    out.QemuLinkLost(),
    out.QemuForgot(CAUSE),
    out.StoodStillTooLong(),
    out.DestinationLost(CAUSE),
    out.ReleaseRequested(CAUSE),
    out.ReleaseRequested(CAUSE, is_forced=True),
    out.QemuCompleted(),
    out.QemuGaveUp(CAUSE),
    out.QemuExited(CAUSE),
    out.QemuExited(CAUSE, was_watched=False),
    out.CancelRequested(CAUSE),
    out.PauseRequested(),
    out.UnpauseRequested(),
    out.ResumeAnswered(),
    out.DestinationNeverRan(CAUSE),
    out.Fenced(CAUSE),
    out.ConfirmRequested(),
    out.GuestRestored(),
    out.HuskEnded(),
)
LENGTH = 7
START: out.Phase = out.Begun()


def replay(*events: out.Event) -> tuple[out.Phase, tuple[do.Effect, ...]]:
    phase: out.Phase = out.Begun()
    effects: tuple[do.Effect, ...] = ()
    for event in events:
        after = outgoing_steps.step(phase, event)
        phase, effects = after.phase, (*effects, *after.effects)
    return phase, effects


def test_a_move_without_trouble_ends_with_nothing_left_here():
    phase, effects = replay(
        out.PerformRequested(),
        out.QemuActive(),
        out.QemuAtSwitchover(),
        out.QemuCompleted(),
        out.ResumeAnswered(),
        out.ConfirmRequested(),
        out.HuskEnded(),
    )

    assert phase == out.Retired()
    assert do.EnsureGuestRestored() not in effects


def test_a_cancel_that_loses_the_race_leaves_the_guest_on_the_destination():
    phase, effects = replay(
        out.PerformRequested(),
        out.QemuActive(),
        out.QemuAtSwitchover(),
        out.CancelRequested(CAUSE),
        out.QemuCompleted(),
    )

    assert phase == out.Sent()
    assert do.EnsureGuestRestored() not in effects


def test_the_decision_is_a_phase_of_its_own_before_migrate_continue_is_sent():
    after = outgoing_steps.step(out.Transferring(), out.QemuAtSwitchover())

    assert after == out.Step(out.Switching(), (do.ContinueMigration(),))


WITH_DISKS = (
    out.PerformRequested(has_disks=True),
    out.MirrorsReady(),
    out.QemuActive(),
    out.QemuAtSwitchover(has_mirrors=True),
)


def test_disks_are_copied_before_memory_and_settled_before_the_decision():
    phase, effects = replay(*WITH_DISKS, out.MirrorsSettled())

    assert phase == out.Switching()
    assert effects == (do.StartMirrors(), do.StartTransfer(), do.SettleMirrors(), do.ContinueMigration())


def test_disks_are_settled_before_a_guest_goes_in_post_copy():
    to_post_copy = (*WITH_DISKS[:-1], out.PostCopyRequested(), WITH_DISKS[-1])

    assert replay(*to_post_copy, out.MirrorsSettled())[0] == out.Crossing()


def test_no_history_gives_a_guest_away_whose_disks_are_not_settled():
    settling: out.Phase = out.Settling()
    for history in histories(outgoing_steps.step, settling, EVENTS, 4):
        if any(isinstance(phase, out.Switching | out.Crossing | out.Sent) for phase in history.phases):
            assert out.MirrorsSettled() in history.events or out.QemuCompleted() in history.events


def test_nothing_decides_to_give_a_guest_to_a_host_whose_agent_does_not_answer():
    for phase in (out.Connecting(), out.Transferring(), out.Leaving(), out.Settling(), out.Settling(leads_to_post_copy=True)):
        for event in (out.QemuAtSwitchover(destination_answers=False), out.MirrorsSettled(destination_answers=False)):
            with suppress(InvalidTransition):
                assert outgoing_steps.step(phase, event) == out.Step(phase)


def test_a_guest_waits_in_its_phase_for_an_agent_that_does_not_answer_and_can_be_taken_back():
    at_switchover = out.QemuAtSwitchover(destination_answers=False)
    to_the_brink = (out.PerformRequested(), out.QemuActive(), at_switchover)

    assert replay(*to_the_brink) == (out.Transferring(), (do.StartTransfer(),))
    assert replay(*to_the_brink, out.QemuAtSwitchover())[0] == out.Switching()
    assert replay(*WITH_DISKS, out.MirrorsSettled(destination_answers=False))[0] == out.Settling()
    for history in (to_the_brink, (*WITH_DISKS, out.MirrorsSettled(destination_answers=False))):
        phase, effects = replay(*history, out.CancelRequested(CAUSE), out.QemuGaveUp(CAUSE), out.GuestRestored())
        assert phase == out.Kept(CAUSE)
        assert do.ContinueMigration() not in effects


def test_a_guest_whose_disks_cannot_be_settled_stays():
    phase, effects = replay(*WITH_DISKS, out.CancelRequested(CAUSE), out.QemuGaveUp(CAUSE), out.GuestRestored())

    assert phase == out.Kept(CAUSE)
    assert effects[-2:] == (do.FreeGuest(), do.EnsureGuestRestored())


def test_a_source_that_dies_while_switching_still_gives_the_guest_away():
    phase, effects = replay(out.PerformRequested(), out.QemuActive(), out.QemuAtSwitchover(), out.QemuExited(CAUSE))

    assert phase == out.Sent(qemu_is_gone=True)
    assert effects[-1] == do.RequestResume()


def test_a_source_that_died_unwatched_while_switching_gives_nothing_away():
    after = outgoing_steps.step(out.Switching(), out.QemuExited(CAUSE, was_watched=False))

    assert after == out.Step(out.Lost(CAUSE))


TO_POST_COPY = (
    out.PerformRequested(),
    out.QemuActive(),
    out.PostCopyRequested(),
    out.QemuAtSwitchover(),
    out.QemuInPostCopy(),
)


def test_post_copy_gives_the_guest_away_when_qemu_is_in_it_and_ends_when_qemu_completes():
    phase, effects = replay(*TO_POST_COPY, out.ResumeAnswered(), out.QemuCompleted())

    assert phase == out.HandedOver()
    assert effects == (
        do.StartTransfer(),
        do.StartPostCopy(),
        do.ContinueMigration(),
        do.RequestResume(),
        do.RecordPostCopy(),
    )


def test_a_post_copy_that_loses_its_connection_asks_for_a_new_one_and_goes_on():
    phase, effects = replay(*TO_POST_COPY, out.ResumeAnswered(), out.QemuLinkLost(), out.QemuInPostCopy())

    assert phase == out.Following(is_resumed=True)
    assert effects[-1] == do.EnsureRecovered()


def test_a_last_pass_that_is_quicker_than_post_copy_ends_as_pre_copy_does():
    assert replay(*TO_POST_COPY[:-1], out.QemuCompleted())[0] == out.Sent()


def test_from_the_decision_for_post_copy_on_nothing_is_cancelled():
    for phase in (out.Crossing(), out.Following(), out.Following(is_resumed=True), out.Broken(), out.Broken(is_resumed=True)):
        for event in (out.CancelRequested(CAUSE), out.PauseRequested(), out.ConfirmRequested()):
            with pytest.raises(InvalidTransition):
                outgoing_steps.step(phase, event)


def test_a_post_copy_that_qemu_gives_up_before_the_destination_ran_comes_back_on_the_destinations_proof():
    phase, effects = replay(*TO_POST_COPY, out.QemuGaveUp(CAUSE), out.DestinationNeverRan(CAUSE), out.GuestRestored())
    other, _ = replay(*TO_POST_COPY, out.DestinationNeverRan(CAUSE), out.QemuGaveUp(CAUSE), out.GuestRestored())

    assert phase == other == out.Kept(CAUSE)
    assert effects[-2:] == (do.StopGuest(), do.EnsureGuestRestored())


@pytest.mark.parametrize("proof", [out.DestinationNeverRan(CAUSE), out.Fenced(CAUSE)])
def test_a_guest_in_post_copy_that_never_ran_at_the_destination_comes_back_once_qemu_gives_it_up(proof):
    for phase in (out.Crossing(), out.Following(), out.Broken()):
        after = outgoing_steps.step(phase, proof)
        may_have_run = isinstance(proof, out.Fenced) and not isinstance(phase, out.Crossing)
        assert after == out.Step(out.Refused(CAUSE, newest_is_there=may_have_run), (do.EnsureGivenBack(),))
        for told in (out.QemuLinkLost(), out.QemuInPostCopy()):
            assert outgoing_steps.step(after.phase, told) == out.Step(after.phase)
        for ended in (out.QemuGaveUp(CAUSE), out.QemuCompleted()):
            assert outgoing_steps.step(after.phase, ended) == out.Step(
                out.Keeping(CAUSE, may_have_run), (do.EnsureGuestRestored(),)
            )
    for phase in (out.Following(is_resumed=True), out.Broken(is_resumed=True)):
        with pytest.raises(InvalidTransition):
            outgoing_steps.step(phase, proof)


def test_a_qemu_that_forgot_to_end_its_migration_is_believed_before_the_guest_was_given_away_only():
    assert outgoing_steps.step(out.Crossing(), out.QemuForgot(CAUSE)).phase == out.Refused(CAUSE)
    for phase in (out.Switching(), out.Following(), out.Broken(), out.Sent()):
        with pytest.raises(InvalidTransition):
            outgoing_steps.step(phase, out.QemuForgot(CAUSE))


def test_no_history_ends_the_sources_qemu_in_post_copy_unless_the_destination_is_proved_to_have_lost_the_guest():
    for history in histories(outgoing_steps.step, START, EVENTS, LENGTH):
        for index, (before, after) in enumerate(pairwise(history.phases)):
            if isinstance(after, out.Losing) and not isinstance(before, out.Losing):
                is_forced = history.events[index] == out.ReleaseRequested(CAUSE, is_forced=True)
                assert isinstance(history.events[index], out.DestinationLost) or is_forced
            if isinstance(before, out.Following | out.Broken):
                assert not isinstance(after, out.Retiring | out.Keeping | out.Cancelling)


def test_what_ran_at_the_destination_and_ended_there_is_never_run_here_again():
    for phase in (out.Sent(), out.Sent(qemu_is_gone=True), out.HandedOver(), out.Following(), out.Broken(is_resumed=True)):
        after = outgoing_steps.step(phase, out.DestinationLost(CAUSE, is_kept_there=True))

        assert after == out.Step(out.Losing(CAUSE, is_kept_there=True, newest_is_there=True), (do.EnsureLostEnded(),))
        assert outgoing_steps.step(after.phase, out.HuskEnded()).phase == out.Lost(CAUSE, newest_is_there=True)


def test_a_release_keeps_what_was_not_sent_and_lets_go_of_what_runs_at_the_destination():
    assert outgoing_steps.step(out.Begun(), out.ReleaseRequested(CAUSE)).phase == out.Keeping(CAUSE)
    assert outgoing_steps.step(out.Transferring(), out.ReleaseRequested(CAUSE)).phase == out.Cancelling(CAUSE)
    assert outgoing_steps.step(out.HandedOver(), out.ReleaseRequested(CAUSE)).phase == out.Retiring(keeps_definition=True)
    assert outgoing_steps.step(out.Keeping(CAUSE), out.ReleaseRequested(CAUSE)).phase == out.Kept(CAUSE)
    for phase in (out.Sent(), out.Broken(), out.Following(), out.Crossing()):
        with pytest.raises(InvalidTransition):
            outgoing_steps.step(phase, out.ReleaseRequested(CAUSE))


def test_a_paused_guest_is_started_again_before_the_switch_over_only():
    for early in (out.Begun(), out.Mirroring(), out.Connecting(), out.Transferring()):
        assert outgoing_steps.step(early, out.UnpauseRequested()).effects == (do.StartGuest(),)
    for late in (out.Leaving(), out.Settling(), out.Switching(), out.Crossing(), out.Following(), out.Sent(), out.HandedOver()):
        with pytest.raises(InvalidTransition):
            outgoing_steps.step(late, out.UnpauseRequested())


def test_a_pause_is_refused_from_the_switch_over_on():
    with pytest.raises(InvalidTransition, match="PauseRequested has no meaning in Switching"):
        outgoing_steps.step(out.Switching(), out.PauseRequested())


def test_a_cancel_is_refused_once_the_guest_was_sent():
    for phase in (out.Sent(), out.HandedOver(), out.Retiring(), out.Retired()):
        with pytest.raises(InvalidTransition):
            outgoing_steps.step(phase, out.CancelRequested(CAUSE))


def test_no_history_restores_a_guest_that_qemu_did_not_give_back():
    proofs = (out.QemuGaveUp, out.DestinationNeverRan, out.Fenced)
    count = 0
    for history in histories(outgoing_steps.step, START, EVENTS, LENGTH):
        count += 1
        for phase, event, after in zip(history.phases, history.events, history.phases[1:], strict=False):
            if isinstance(after, out.Keeping) and not isinstance(phase, out.Keeping):
                assert isinstance(event, proofs) or isinstance(phase, out.Begun | out.Mirroring | out.Refused)

    assert count > 1000


def test_no_history_gives_the_guest_away_and_keeps_it_unless_the_destination_is_proved_not_to_have_it():
    for history in histories(outgoing_steps.step, START, EVENTS, LENGTH):
        for index, (before, after) in enumerate(pairwise(history.phases)):
            if isinstance(before, out.Sent) and isinstance(after, out.Keeping):
                assert isinstance(history.events[index], out.DestinationNeverRan | out.Fenced)
            if isinstance(before, out.HandedOver | out.Retiring):
                assert isinstance(after, out.HandedOver | out.Retiring | out.Retired | out.Losing)


def test_no_history_leaves_a_final_phase():
    for final in (out.Retired(), out.Kept(CAUSE), out.Lost(CAUSE)):
        for event in EVENTS:
            with pytest.raises(InvalidTransition):
                outgoing_steps.step(final, event)


def test_every_unfinished_phase_has_a_way_to_an_end():
    reached = {type(h.phase) for h in histories(outgoing_steps.step, START, EVENTS, LENGTH)}

    assert reached == set(out.Phase.__args__)
    for start in {h.phase for h in histories(outgoing_steps.step, START, EVENTS, 5)}:
        assert any(isinstance(h.phase, out.FINAL) for h in histories(outgoing_steps.step, start, EVENTS, 4))
