"""Who owns the guest, from what both agents say: every pair of phases of the agents' own machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.halves import HalfState
from coordinator.ownership import Decision, Silent, Word, decide, has_taken_over, holds_all
from tests.unit.coordinator.halves import DESTINATION_PHASES, SOURCE_PHASES, destination_half, source_half

WORDS = {
    "begin": Decision.BEGIN,
    "follow": Decision.FOLLOW,
    "finish": Decision.FINISH,
    "back": Decision.ROLL_BACK,
    "ask": Decision.ASK_AGAIN,
    "fence": Decision.FENCE,
    "both": Decision.CONFLICT,
    "lost": Decision.LOST,
    "let-go": Decision.LET_GO,
    "over": Decision.OVER,
}
TABLE = """
source       silent none   Reserved Listening Loading Loaded Resuming Running Finished Undoing Abandoned Lost   KeepingDefinition
silent       ask    ask    ask      ask       ask     ask    finish   finish  finish   ask     ask       ask    ask
none         ask    over   back     back      back    fence  finish   finish  finish   back    back      lost   lost
Begun        begin  begin  begin    begin     begin   begin  finish   finish  finish   back    back      back   back
Mirroring    follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Connecting   follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Settling     follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Transferring follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Switching    follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Leaving      follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Crossing     follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Following    follow follow follow   follow    follow  follow follow   follow  follow   follow  follow    follow follow
Broken       follow follow follow   follow    follow  follow follow   follow  follow   follow  follow    follow follow
Refused      follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Losing       follow follow follow   follow    follow  follow follow   follow  follow   follow  follow    follow follow
Cancelling   follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Keeping      follow follow follow   follow    follow  follow finish   finish  finish   follow  follow    follow follow
Sent         finish finish finish   finish    finish  finish finish   finish  finish   finish  finish    lost   lost
HandedOver   finish let-go finish   finish    finish  finish finish   finish  finish   lost    lost      lost   lost
Retiring     finish let-go finish   finish    finish  finish finish   finish  finish   lost    lost      lost   lost
Retired      finish let-go finish   finish    finish  finish finish   finish  finish   lost    lost      lost   lost
Kept         back   back   back     back      back    back   both     both    both     back    back      back   back
Lost         ask    lost   lost     lost      ask     fence  finish   finish  finish   lost    lost      lost   lost
"""
# The same for destinations in post-copy.
HALVED_TABLE = """
source       Arrived Entering Filling Ending
silent       ask     ask      ask     ask
none         back    ask      ask     lost
Begun        begin   begin    begin   back
Mirroring    follow  follow   follow  follow
Connecting   follow  follow   follow  follow
Settling     follow  follow   follow  follow
Transferring follow  follow   follow  follow
Switching    follow  follow   follow  follow
Leaving      follow  follow   follow  follow
Crossing     follow  follow   follow  follow
Following    follow  follow   follow  follow
Broken       follow  follow   follow  follow
Refused      follow  follow   follow  follow
Losing       follow  follow   follow  follow
Cancelling   follow  follow   follow  follow
Keeping      follow  follow   follow  follow
Sent         finish  finish   finish  lost
HandedOver   finish  finish   finish  lost
Retiring     finish  finish   finish  lost
Retired      finish  finish   finish  lost
Kept         back    both     both    back
Lost         ask     lost     lost    lost
"""
_TABLES = [[line.split() for line in table.strip().splitlines()] for table in (TABLE, HALVED_TABLE)]
_DESTINATIONS = [name for header, *_ in _TABLES for name in header[1:]]
EVERY_PAIR = [
    (row[0], destination, word)
    for header, *rows in _TABLES
    for row in rows
    for destination, word in zip(header[1:], row[1:], strict=True)
]
MAY_RUN_AT_DESTINATION = {"Resuming", "Running", "Finished"}
HALVED = {"Entering", "Filling"}


def source_word(name: str) -> Word:
    return {"silent": Silent("no answer"), "none": None}[name] if name in {"silent", "none"} else source_half(name)


def destination_word(name: str) -> Word:
    return {"silent": Silent("no answer"), "none": None}[name] if name in {"silent", "none"} else destination_half(name)


def test_the_table_has_every_phase_of_both_machines():
    for _, *rows in _TABLES:
        assert {row[0] for row in rows} == {"silent", "none", *SOURCE_PHASES}
    assert set(_DESTINATIONS) == {"silent", "none", *DESTINATION_PHASES}


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
