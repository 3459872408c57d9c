"""Who owns the guest, from what both agents say: every pair of phases of the agents' own machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.halves import HalfState
from coordinator.ownership import Decision, Silent, Word, decide, has_taken_over, holds_all
from tests.unit.coordinator.halves import DESTINATION_PHASES, SOURCE_PHASES, destination_half, source_half

WORDS = {
    "begin": Decision.BEGIN,
    "go": Decision.FOLLOW,
    "fin": Decision.FINISH,
    "back": Decision.ROLL_BACK,
    "ask": Decision.ASK_AGAIN,
    "fence": Decision.FENCE,
    "both": Decision.CONFLICT,
    "lost": Decision.LOST,
}
TABLE = """
source       silent none  Reserved Listening Loading Loaded Arrived Entering Filling Ending Resuming Running Finished Undoing Abandoned Lost
silent       ask    ask   ask      ask       ask     ask    ask     ask      ask     ask    fin      fin     fin      ask     ask       ask
none         begin  begin back     back      back    fence  back    ask      ask     lost   fin      fin     fin      back    back      lost
Begun        begin  begin begin    begin     begin   begin  begin   begin    begin   back   fin      fin     fin      back    back      back
Connecting   go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Transferring go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Switching    go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Leaving      go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Crossing     go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Following    go     go    go       go        go      go     go      go       go      go     go       go      go       go      go        go
Broken       go     go    go       go        go      go     go      go       go      go     go       go      go       go      go        go
Refused      go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Losing       go     go    go       go        go      go     go      go       go      go     go       go      go       go      go        go
Cancelling   go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Keeping      go     go    go       go        go      go     go      go       go      go     fin      fin     fin      go      go        go
Sent         fin    fin   fin      fin       fin     fin    fin     fin      fin     lost   fin      fin     fin      fin     fin       lost
HandedOver   fin    fin   fin      fin       fin     fin    fin     fin      fin     lost   fin      fin     fin      fin     fin       lost
Retiring     fin    fin   fin      fin       fin     fin    fin     fin      fin     lost   fin      fin     fin      fin     fin       lost
Retired      fin    fin   fin      fin       fin     fin    fin     fin      fin     lost   fin      fin     fin      fin     fin       lost
Kept         back   back  back     back      back    back   back    both     both    back   both     both    both     back    back      back
Lost         ask    lost  lost     lost      ask     fence  ask     lost     lost    lost   fin      fin     fin      lost    lost      lost
"""
_HEADER, *_ROWS = [line.split() for line in TABLE.strip().splitlines()]
EVERY_PAIR = [(row[0], destination, word) for row in _ROWS for destination, word in zip(_HEADER[1:], row[1:], strict=True)]
MAY_RUN_AT_DESTINATION = {"Resuming", "Running", "Finished"}
HALVED = {"Entering", "Filling"}


def source_word(name: str) -> Word:
    return {"silent": Silent("no answer"), "none": None}[name] if name in {"silent", "none"} else source_half(name)


def destination_word(name: str) -> Word:
    return {"silent": Silent("no answer"), "none": None}[name] if name in {"silent", "none"} else destination_half(name)


def test_the_table_has_every_phase_of_both_machines():
    assert {row[0] for row in _ROWS} == {"silent", "none", *SOURCE_PHASES}
    assert set(_HEADER[1:]) == {"silent", "none", *DESTINATION_PHASES}


@pytest.mark.parametrize(("source", "destination", "word"), EVERY_PAIR)
def test_what_both_agents_say_decides(source: str, destination: str, word: str):
    assert decide(source_word(source), destination_word(destination)) is WORDS[word]


def test_a_destination_that_may_run_the_guest_is_never_undone():
    for _source, destination, word in EVERY_PAIR:
        if destination in MAY_RUN_AT_DESTINATION:
            assert WORDS[word] in {Decision.FINISH, Decision.FOLLOW, Decision.CONFLICT}


def test_a_destination_that_runs_the_guest_without_its_memory_is_undone_only_if_the_sources_qemu_has_ended():
    undone = {source for source, destination, word in EVERY_PAIR if destination in HALVED and word in {"back", "lost"}}

    assert undone == {"Lost"}


def test_a_destination_with_the_whole_guest_is_undone_only_if_the_source_keeps_it():
    undone = {source for source, destination, word in EVERY_PAIR if destination == "Loaded" and word in {"back", "lost"}}

    assert undone == {"Kept"}


def test_nothing_is_undone_on_the_word_of_one_agent_alone_unless_the_source_keeps_the_guest():
    alone = [(source, word) for source, destination, word in EVERY_PAIR if "silent" in {source, destination}]

    assert {source for source, word in alone if word in {"back", "lost"}} == {"Kept"}


@pytest.mark.parametrize("word", [source_half("Begun"), None, Silent("x")])
def test_a_state_of_another_version_is_asked_again(word: Word):
    strange = replace(destination_half("Loaded"), state=HalfState.UNSPECIFIED)

    assert decide(word, strange) is Decision.ASK_AGAIN
    assert decide(strange, word) is Decision.ASK_AGAIN


def test_a_destination_says_whether_it_has_the_guest():
    assert {name for name in DESTINATION_PHASES if has_taken_over(destination_half(name))} == MAY_RUN_AT_DESTINATION | HALVED
    assert {name for name in DESTINATION_PHASES if holds_all(destination_half(name))} == {"Loaded"}
    assert not has_taken_over(None)
    assert not holds_all(Silent("x"))
