"""Both machines together, with the two QEMUs as they really behave: every reachable world has at most one running guest."""

from __future__ import annotations

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from tests.unit.agent.migration.worlds import (
    RUNNING,
    Qemu,
    Reachable,
    World,
    asked_of_destination,
    at_destination,
    by_themselves,
    every_world,
    leading_to,
    successors,
    users,
)

HALVED = {Qemu.HALF, Qemu.RUNS_HALF}
WHOLE_AT_SOURCE = {Qemu.HALVING, Qemu.FORGOT, Qemu.HALF, Qemu.HOLDS}


def test_no_reachable_world_has_the_guest_running_on_both_hosts():
    worlds = every_world()

    assert len(worlds) > 1000
    assert not [world for world in worlds if world.runs_twice]


def test_no_reachable_world_runs_at_the_source_what_has_run_at_the_destination():
    assert not [world for world in every_world() if world.has_run_there and world.source_qemu is Qemu.RUNS]


def test_no_machine_ends_its_half_of_a_guest_that_is_half_on_each_side():
    for world in every_world():
        if world.source_qemu is not Qemu.HALF or world.destination_qemu not in HALVED:
            continue
        assert isinstance(world.source, out.Crossing | out.Following | out.Broken), world
        coming = [*by_themselves(world, Reachable()), *users(world)]
        coming += [after for told in asked_of_destination(world) for after in at_destination(world, told)]
        for after in coming:
            assert after.source_qemu in {Qemu.HALF, Qemu.HOLDS}, (world, after)
            assert after.destination_qemu is not Qemu.GONE, (world, after)


def test_a_guest_that_is_half_on_each_side_goes_on_to_the_destination_when_nothing_ends():
    halved = [w for w in every_world() if w.source_qemu is Qemu.HALF and w.destination_qemu in HALVED]

    def has_arrived(world: World) -> bool:
        return isinstance(world.source, out.HandedOver) and world.destination_qemu is Qemu.RUNS

    assert len(halved) > 10
    assert set(halved) <= leading_to(every_world(), successors, has_arrived)


def test_a_source_that_has_lost_a_guest_knows_whether_its_disks_may_be_newer_at_the_destination():
    took = inc.Entering | inc.Filling | inc.Ending | inc.Resuming | inc.Running | inc.Finished | inc.KeepingDefinition | inc.Lost
    lost = [(world, world.source) for world in every_world() if isinstance(world.source, out.Losing | out.Lost)]

    assert {phase.newest_is_there for _, phase in lost} == {True, False}
    for world, phase in lost:
        if isinstance(world.destination, took):
            assert phase.newest_is_there, world
        if not world.token_given:
            assert not phase.newest_is_there, world


def test_no_reachable_world_gives_the_guest_up_on_both_sides_while_a_whole_copy_exists():
    gone_there = inc.Entering | inc.Filling | inc.Running | inc.Finished | inc.KeepingDefinition | inc.Lost
    for world in every_world():
        if isinstance(world.source, out.Retired):
            assert isinstance(world.destination, gone_there)
        if isinstance(world.source, out.Kept):
            assert world.destination_qemu not in RUNNING


def test_the_source_lets_go_of_a_definition_only_once_the_destination_has_stored_it():
    let_go = [world for world in every_world() if isinstance(world.source, out.Losing) and world.source.is_kept_there]

    assert let_go
    assert all(isinstance(world.destination, inc.Lost) and world.destination.is_kept for world in let_go)


def test_no_agent_ends_a_source_that_has_the_only_whole_copy():
    took = inc.Entering | inc.Filling | inc.Resuming | inc.Running | inc.Finished | inc.KeepingDefinition | inc.Ending | inc.Lost
    alone = [
        world
        for world in every_world()
        if world.source_qemu in WHOLE_AT_SOURCE and world.destination_qemu is Qemu.GONE and not isinstance(world.destination, took)
    ]

    assert len(alone) > 10
    for world in alone:
        for after in [*by_themselves(world, Reachable()), *users(world)]:
            assert after.source_qemu is not Qemu.GONE, (world, after)


def test_a_guest_that_never_ran_at_the_destination_comes_back_from_every_moment_of_a_post_copy():
    in_post_copy = out.Crossing | out.Following | out.Broken | out.Refused
    broken = {
        world
        for world in every_world()
        if isinstance(world.destination, inc.Abandoned)
        and world.source_qemu in WHOLE_AT_SOURCE
        and isinstance(world.source, in_post_copy)
    }

    def is_back(world: World) -> bool:
        return isinstance(world.source, out.Kept) and world.source_qemu is Qemu.RUNS

    assert {type(world.source) for world in broken} == {out.Crossing, out.Following, out.Broken, out.Refused}
    assert broken <= leading_to(every_world(), lambda world: by_themselves(world, Reachable()), is_back)
