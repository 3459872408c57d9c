"""Every advice works: where its condition holds it is accepted, ends its half, and leaves at most one copy of the guest.

Agents are there for good or away for good, no coordinator helps, and what was asked or answered before may have been lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.advice import Advice, Command, Side, When, for_destination, for_source
from agent.migration.machine import Cause
from tests.unit.agent.migration.worlds import (
    Qemu,
    Reachable,
    World,
    at_destination,
    at_source,
    by_themselves,
    closure,
    every_world,
    leading_to,
)

WISH = Cause("an operator", "RELEASED", by_wish=True)
ALL = Reachable()
ALONE_A, ALONE_B = Reachable(destination=False), Reachable(source=False)


def source_is_final(world: World) -> bool:
    return isinstance(world.source, out.FINAL)


def source_is_final_or_lost_the_race(world: World) -> bool:
    """Giving up while the guest changes hands may come too late: it has gone, and what is advised then ends it."""
    return isinstance(world.source, (*out.FINAL, out.Sent, out.HandedOver))


def destination_is_final(world: World) -> bool:
    return isinstance(world.destination, inc.FINAL)


def with_dead_destination(world: World) -> World:
    return replace(world, destination_qemu=Qemu.GONE)


def with_dead_source(world: World) -> World:
    return replace(world, source_qemu=Qemu.GONE)


def taken_at_source(world: World, advice: Advice, reachable: Reachable) -> Iterator[tuple[list[World], Reachable]]:
    """Yield what a command leads to, wherever its condition holds, and who is there then."""
    match advice.when:
        case When.NEVER_RAN_THERE:
            if not world.has_run_there:
                yield _at_source(with_dead_destination(world), advice), ALONE_A
        case When.PEER_DEAD:
            yield _at_source(with_dead_destination(world), advice), ALONE_A
        case _:
            yield _at_source(world, advice), reachable


def _at_source(world: World, advice: Advice) -> list[World]:
    if advice.command is Command.FENCE:
        return list(at_source(world, out.Fenced(WISH)))
    return list(at_source(world, out.ReleaseRequested(WISH, advice.is_forced)))


def taken_at_destination(world: World, advice: Advice, reachable: Reachable) -> Iterator[tuple[list[World], Reachable]]:
    """Yield what a command leads to, wherever its condition holds, and who is there then."""
    match advice.when:
        case When.PEER_DEAD:
            yield _at_destination(with_dead_source(world), advice), ALONE_B
        case When.PEER_IS_OVER:
            yield _at_destination(with_dead_source(world), advice), ALONE_B
            if source_is_final(world):
                yield _at_destination(world, advice), reachable
        case _:
            yield _at_destination(world, advice), reachable


def _at_destination(world: World, advice: Advice) -> list[World]:
    if advice.command is Command.FENCE:  # which keeps the guest here once it runs
        return [replace(after, is_finishing=True) for after in at_destination(world, inc.ResumeRequested())]
    event = inc.ReleaseRequested(WISH, advice.is_forced, may_come_halved=world.may_come_halved)
    return list(at_destination(world, event))


def advice_at_destination(world: World) -> tuple[Advice, ...]:
    return for_destination(world.destination, may_come_halved=world.may_come_halved)


def wrongly_fenced() -> set[World]:
    """Return worlds after an operator's wrong word: the destination of a fenced source lives."""
    fenced = [after for world in every_world() for after in at_source(world, out.Fenced(WISH))]
    return closure(fenced, lambda world: [*by_themselves(world, ALL), *_resumed(world)])


def _resumed(world: World) -> Iterator[World]:
    yield from at_destination(world, inc.ResumeRequested())


@pytest.mark.parametrize("reachable", [ALL, ALONE_A])
def test_what_the_source_advises_is_accepted_and_ends_its_half_with_one_guest_at_most(reachable: Reachable):
    taken: dict[tuple[When, Reachable], set[World]] = {}
    for world in every_world():
        for advice in for_source(world.source):
            if advice.command is Command.RECOVER:
                continue
            for after, there in taken_at_source(world, advice, reachable):
                assert after, (world, advice)
                taken.setdefault((advice.when, there), set()).update(after)

    assert {when for when, _ in taken} == {
        When.GIVING_UP,
        When.STAYS_STOPPED,
        When.NEVER_RAN_THERE,
        When.HAS_RUN_THERE,
        When.NO_COORDINATOR,
        When.PEER_DEAD,
        When.GIVEN_UP,
    }
    for (when, there), worlds in taken.items():
        assert_ends(worlds, there, source_is_final_or_lost_the_race if when is When.GIVING_UP else source_is_final)


@pytest.mark.parametrize("reachable", [ALL, ALONE_B])
def test_what_the_destination_advises_is_accepted_and_ends_its_half_with_one_guest_at_most(reachable: Reachable):
    taken: dict[Reachable, set[World]] = {}
    advised = set()
    for world in every_world():
        for advice in advice_at_destination(world):
            for after, there in taken_at_destination(world, advice, reachable):
                assert after, (world, advice)
                taken.setdefault(there, set()).update(after)
                advised.add(advice.when)

    assert advised == {When.GIVING_UP, When.PEER_DEAD, When.PEER_IS_OVER, When.COPY_IS_ENDED, When.NO_COORDINATOR}
    for there, worlds in taken.items():
        assert_ends(worlds, there, destination_is_final)


def assert_ends(worlds, reachable: Reachable, is_final) -> None:
    successors = partial(by_themselves, reachable=reachable)
    reached = closure(worlds, successors)

    assert not [world for world in reached if world.runs_twice]
    stuck = reached - leading_to(reached, successors, is_final)
    assert not stuck, stuck.pop()


@pytest.mark.parametrize("reachable", [ALL, ALONE_A, ALONE_B])
def test_every_half_ends_by_itself_or_comes_where_a_command_is_advised(reachable: Reachable):
    successors = partial(by_themselves, reachable=reachable)
    worlds = {_as_if_dead(world, reachable) for world in every_world()}
    reached = closure(worlds, successors)

    def source_has_a_way(world: World) -> bool:
        return source_is_final(world) or bool(for_source(world.source))

    def destination_has_a_way(world: World) -> bool:
        return destination_is_final(world) or bool(advice_at_destination(world))

    if reachable.source:
        assert not reached - leading_to(reached, successors, source_has_a_way)
    if reachable.destination:
        assert not reached - leading_to(reached, successors, destination_has_a_way)


def _as_if_dead(world: World, reachable: Reachable) -> World:
    """Let the QEMU of a host that is dead for good be gone, too."""
    source_qemu = world.source_qemu if reachable.source else Qemu.GONE
    destination_qemu = world.destination_qemu if reachable.destination else Qemu.GONE
    return replace(world, source_qemu=source_qemu, destination_qemu=destination_qemu)


def test_a_source_that_was_fenced_by_mistake_leaves_both_hosts_a_way_to_an_end():
    worlds = wrongly_fenced()
    for world in worlds:
        for advice in advice_at_destination(world):
            for after, there in taken_at_destination(world, advice, ALL):
                assert after, (world, advice)
                successors = partial(by_themselves, reachable=there)
                reached = closure(after, successors)
                assert not reached - leading_to(reached, successors, destination_is_final)


def test_recover_is_advised_exactly_where_a_connection_is_lost():
    for world in every_world():
        is_advised = any(advice.command is Command.RECOVER for advice in for_source(world.source))

        assert is_advised is isinstance(world.source, out.Broken)


def test_force_is_needed_exactly_where_a_release_may_end_the_only_copy_of_the_guest():
    forced = {
        type(phase)
        for world in every_world()
        for phase, advised in ((world.source, for_source(world.source)), (world.destination, advice_at_destination(world)))
        for advice in advised
        if advice.is_forced
    }

    assert forced == {out.Sent, out.Broken, out.Refused, *_FORCED_AT_DESTINATION}


_FORCED_AT_DESTINATION = {inc.Listening, inc.Loading, inc.Loaded, inc.Arrived, inc.Entering, inc.Filling, inc.Resuming}


def test_an_advice_names_the_hosts_and_the_command():
    at_source = Side("a1b2", "host-a", "host-b", is_source=True)
    at_destination = Side("a1b2", "host-b", "", is_source=False)

    assert at_source.text(for_source(out.HandedOver())) == (
        "if no coordinator ends it: the guest stays on host-b: ferry migration release a1b2 --host host-a"
    )
    assert at_destination.text(advice_at_destination_of(inc.Loaded())).startswith(
        "if the other host is dead for good (powered off, not merely silent): ferry migration fence a1b2 --host host-b; "
    )
    assert at_source.text(for_source(out.Broken())).startswith("to try at once: ferry migration recover a1b2; ")


def advice_at_destination_of(phase: inc.Phase) -> tuple[Advice, ...]:
    return for_destination(phase, may_come_halved=False)
