"""What a guardian may do, over everything that QEMU can say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from agent.guardian.charge import Charge, read_charge
from agent.guardian.duty import Duty, duty_of
from agent.qemu.status import MigrationStatus, RunState

CHARGE = Charge(
    migration_id="m1",
    qmp_path="/run/x/qmp.sock",
    pid=42,
    start_time_ticks=7,
    max_downtime_s=0.3,
    may_stand_still=False,
    is_under_way=True,
    peer_address="192.0.2.2:7701",
    token="00ff",
    note_path="/var/lib/ferry/sessions/m1.claim",
    certificates=("/pki/ca.pem", "/pki/cert.pem", "/pki/key.pem"),
)
LONG_S = 60.0
EVERYTHING = tuple(product([one.value for one in MigrationStatus], [one.value for one in RunState]))


def test_a_guest_that_waits_for_an_agent_goes_on_here_once_it_has_stood_still_for_as_long_as_is_allowed():
    assert duty_of(CHARGE, "pre-switchover", "finish-migrate", 0.29) is Duty.WAIT
    assert duty_of(CHARGE, "pre-switchover", "finish-migrate", 0.3) is Duty.CANCEL


def test_a_guest_that_its_user_has_paused_waits_for_the_agent():
    paused = replace(CHARGE, may_stand_still=True)

    assert duty_of(paused, "pre-switchover", "finish-migrate", LONG_S) is Duty.WAIT


def test_nothing_but_a_guest_that_waits_for_a_word_is_ever_cancelled():
    cancelled = {status for status, state in EVERYTHING if duty_of(CHARGE, status, state, LONG_S) is Duty.CANCEL}

    assert cancelled == {"pre-switchover"}


def test_nothing_but_a_guest_that_qemu_has_sent_is_ever_given_away():
    given = {(status, state) for status, state in EVERYTHING if duty_of(CHARGE, status, state, LONG_S) is Duty.RESUME}

    assert {status for status, _ in given} == {"completed", "postcopy-active"}
    assert {state for status, state in given if status == "completed"} == {"postmigrate", "finish-migrate"}


def test_a_move_that_has_not_begun_or_was_taken_back_is_left_alone():
    before = replace(CHARGE, is_under_way=False)

    assert {duty_of(before, status, state, LONG_S) for status, state in EVERYTHING} == {Duty.NOTHING}


def test_a_guardian_has_nothing_to_do_any_more_once_qemu_has_its_guest_back():
    for status in ("none", "failed", "cancelled"):
        assert duty_of(CHARGE, status, "running", LONG_S) is Duty.NOTHING


def test_at_the_destination_nothing_but_a_guest_that_is_loaded_and_stands_still_is_claimed():
    incoming = replace(CHARGE, token="", token_sha256="ab")
    duties = {(status, state): duty_of(incoming, status, state, LONG_S) for status, state in EVERYTHING}

    assert [one for one, duty in duties.items() if duty is Duty.CLAIM] == [("completed", "paused")]
    assert not {Duty.CANCEL, Duty.RESUME} & set(duties.values())


def test_a_charge_is_read_as_it_was_told():
    assert read_charge(CHARGE.to_message()) == CHARGE
