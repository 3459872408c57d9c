"""The coordinator's rules over every world of both machines and both QEMUs: with both agents there, every migration ends by itself.

What the workflow asks for on each decision is written down here as the events that the halves are given; `decide` is the real one.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.wire_phases import MAY_TELL_TOKEN
from coordinator.ownership import Decision, decide
from tests.unit.agent.migration.worlds import (
    CAUSE,
    Reachable,
    World,
    at_destination,
    at_source,
    by_themselves,
    closure,
    every_world,
    leading_to,
)
from tests.unit.coordinator.halves import destination_half, source_half


def decision_in(world: World) -> Decision:
    return decide(source_half(type(world.source).__name__), destination_half(type(world.destination).__name__))


def driven(world: World) -> Iterator[World]:
    """Yield what comes by itself, and what the coordinator does about it."""
    yield from by_themselves(world, Reachable())
    match decision_in(world):
        case Decision.BEGIN if not isinstance(world.destination, inc.Reserved):
            yield from at_source(world, out.PerformRequested())
        case Decision.FINISH:
            yield from _completed(world)
        case Decision.ROLL_BACK | Decision.LOST | Decision.ASK_AGAIN if isinstance(world.source, out.FINAL):
            abandon = inc.AbandonRequested(CAUSE, source_has_ended=True, may_come_halved=world.may_come_halved)
            yield from at_destination(world, abandon)
        case Decision.ROLL_BACK:
            yield from at_source(world, out.CancelRequested(CAUSE))
        case Decision.LOST if isinstance(world.destination, inc.Lost):
            yield from at_source(world, out.DestinationLost(CAUSE, world.destination.is_kept))
        case _:
            pass


def _completed(world: World) -> Iterator[World]:
    if isinstance(world.source, MAY_TELL_TOKEN):
        yield from at_destination(world, inc.ResumeRequested())
    if isinstance(world.destination, inc.Running):
        yield from at_destination(world, inc.FinishRequested())
    if isinstance(world.destination, inc.Finished):
        yield from at_source(world, out.ConfirmRequested())


def has_ended(world: World) -> bool:
    return isinstance(world.source, out.FINAL) and isinstance(world.destination, inc.FINAL)


def test_with_both_agents_there_every_migration_ends_unless_only_the_destination_could_run_the_guest_without_a_word():
    worlds = {world for world in every_world() if not isinstance(world.destination, inc.Reserved)}
    reached = closure(worlds, driven)
    stuck = reached - leading_to(reached, driven, lambda world: has_ended(world) or decision_in(world) is Decision.FENCE)

    assert not [world for world in reached if world.runs_twice]
    assert not stuck, stuck.pop()


def test_what_has_run_at_the_destination_is_never_run_at_the_source_by_the_coordinator():
    reached = closure(every_world(), driven)

    assert not [world for world in reached if world.has_run_there and isinstance(world.source, out.Keeping | out.Kept)]
