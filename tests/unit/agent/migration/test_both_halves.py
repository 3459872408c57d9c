"""Both machines together, with the two QEMUs as they really behave: every reachable world has at most one running guest.

The world is the two phases, what each QEMU is, and whether the token was given. QEMU's moves (send, complete, fail, die) and the
agents' events may come in any order; the search visits every world there is, not only short histories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import outgoing_steps
from agent.migration.machine import Cause, InvalidTransition

CAUSE = Cause("x", "X")


class Qemu(Enum):
    """What a QEMU is, seen from outside."""

    ABSENT = auto()
    RUNS = auto()  # the guest's vCPUs run
    WAITS = auto()  # source: pre-switchover; destination: listens
    SENDS = auto()  # source: device
    HALVING = auto()  # source: says that it is in post-copy, and sends the devices
    HALF = auto()  # source: sends the rest of the memory; destination: has the guest without it, stopped
    RUNS_HALF = auto()  # destination: runs the guest while its memory comes
    HOLDS = auto()  # source: postmigrate; destination: completed and paused
    GONE = auto()


@dataclass(frozen=True, slots=True)
class World:
    """Everything that decides who may run the guest."""

    source: out.Phase
    destination: inc.Phase
    source_qemu: Qemu
    destination_qemu: Qemu
    token_given: bool = False


RUNNING = (Qemu.RUNS, Qemu.RUNS_HALF)
START = World(out.Begun(), inc.Reserved(), Qemu.RUNS, Qemu.WAITS)


def _outgoing(world: World, event: out.Event) -> Iterator[World]:
    try:
        after = outgoing_steps.step(world.source, event)
    except InvalidTransition:
        return
    changed = replace(world, source=after.phase)
    for effect in after.effects:
        if isinstance(effect, do.ContinueMigration) and changed.source_qemu is Qemu.WAITS:
            if isinstance(changed.source, out.Crossing):
                yield replace(changed, source_qemu=Qemu.HALVING)
            changed = replace(changed, source_qemu=Qemu.SENDS)
        if isinstance(effect, do.StopGuest) and isinstance(changed.source, out.Sent | out.Following | out.Broken):
            changed = replace(changed, source_qemu=Qemu.HOLDS)
        if isinstance(effect, do.EnsureLostEnded):
            changed = replace(changed, source_qemu=Qemu.GONE)
        if isinstance(effect, do.RequestResume):
            changed = replace(changed, token_given=True)
        if isinstance(effect, do.EnsureGuestRestored) and changed.source_qemu is Qemu.HOLDS:
            changed = replace(changed, source_qemu=Qemu.RUNS)
        if isinstance(effect, do.EnsureHuskEnded):
            changed = replace(changed, source_qemu=Qemu.GONE)
    yield changed


def _incoming(world: World, event: inc.Event) -> Iterator[World]:
    try:
        after = inc.step(world.destination, event)
    except InvalidTransition:
        return
    changed = replace(world, destination=after.phase)
    for effect in after.effects:
        if isinstance(effect, inc.EnsureGuestRuns) and changed.destination_qemu is Qemu.HOLDS:
            changed = replace(changed, destination_qemu=Qemu.RUNS)
        if isinstance(effect, inc.EnsureGuestRuns) and changed.destination_qemu is Qemu.HALF:
            changed = replace(changed, destination_qemu=Qemu.RUNS_HALF)
        if isinstance(effect, inc.EnsureUndone):
            changed = replace(changed, destination_qemu=Qemu.GONE)
    yield changed


def successors(world: World) -> Iterator[World]:
    """Yield every world that one move leads to."""
    yield from _qemus_move(world)
    for outgoing in _source_may_see(world):
        yield from _outgoing(world, outgoing)
    for incoming in _destination_may_see(world):
        yield from _incoming(world, incoming)


def _qemus_move(world: World) -> Iterator[World]:
    source, destination = world.source_qemu, world.destination_qemu
    before = out.Connecting | out.Transferring | out.Leaving
    sending = isinstance(world.source, before | out.Settling | out.Switching | out.Crossing | out.Cancelling)
    if source is Qemu.RUNS and isinstance(world.source, before):
        yield replace(world, source_qemu=Qemu.WAITS)
    if source is Qemu.HALVING and destination is Qemu.WAITS:
        yield replace(world, source_qemu=Qemu.HALF, destination_qemu=Qemu.HALF)
    if source is Qemu.HALVING:
        yield replace(world, source_qemu=Qemu.RUNS)  # the devices could not be sent: QEMU goes on by itself
    if source is Qemu.HALF and destination is Qemu.HALF:
        yield replace(world, source_qemu=Qemu.HOLDS, destination_qemu=Qemu.HOLDS)
    if source is Qemu.HALF and destination is Qemu.RUNS_HALF:
        yield replace(world, source_qemu=Qemu.HOLDS, destination_qemu=Qemu.RUNS)
    if source is Qemu.SENDS and destination is Qemu.WAITS:
        yield replace(world, destination_qemu=Qemu.HOLDS)
    if source is Qemu.SENDS and destination is Qemu.HOLDS:
        yield replace(world, source_qemu=Qemu.HOLDS)  # acknowledged
    if source in {Qemu.WAITS, Qemu.SENDS} and sending:
        yield replace(world, source_qemu=Qemu.RUNS)  # the channel broke or was cancelled: QEMU goes on by itself
    yield replace(world, source_qemu=Qemu.GONE)
    yield replace(world, destination_qemu=Qemu.GONE)


def _source_may_see(world: World) -> Iterator[out.Event]:
    yield from _source_may_be_told(world)
    yield from (out.PerformRequested(has_disks=True), out.MirrorsReady(), out.MirrorsSettled())
    yield from (
        out.PerformRequested(),
        out.CancelRequested(CAUSE),
        out.PauseRequested(),
        out.UnpauseRequested(),
        out.PostCopyRequested(),
    )
    match world.source_qemu:
        case Qemu.RUNS:
            yield from (out.QemuActive(), out.GuestRestored())
            if not isinstance(world.source, out.Begun):
                yield out.QemuGaveUp(CAUSE)
        case Qemu.WAITS:
            yield from (out.QemuAtSwitchover(), out.QemuAtSwitchover(has_mirrors=True))
        case Qemu.HALVING:
            yield from (out.QemuInPostCopy(), out.StoodStillTooLong())
        case Qemu.HALF:
            yield from (out.QemuInPostCopy(), out.QemuLinkLost())
        case Qemu.HOLDS:
            yield out.QemuCompleted()
        case Qemu.GONE:
            yield from (out.QemuExited(CAUSE), out.QemuExited(CAUSE, was_watched=False), out.HuskEnded())


def _source_may_be_told(world: World) -> Iterator[out.Event]:
    if isinstance(world.destination, inc.Filling):
        yield out.ResumeAnswered()
    if isinstance(world.destination, inc.Lost):
        yield out.DestinationLost(CAUSE)
    if isinstance(world.destination, inc.Running | inc.Finished):
        yield from (out.ResumeAnswered(), out.ConfirmRequested())
    if isinstance(world.destination, inc.Abandoned):
        yield out.DestinationNeverRan(CAUSE)


def _destination_may_see(world: World) -> Iterator[inc.Event]:
    yield from (inc.QemuListening(), inc.AbandonRequested(CAUSE), inc.FinishRequested())
    match world.destination_qemu:
        case Qemu.WAITS:
            yield inc.QemuActive()
        case Qemu.HALF:
            yield inc.GuestArrived()
        case Qemu.RUNS_HALF:
            yield from (inc.GuestArrived(), inc.GuestRuns())
        case Qemu.HOLDS:
            yield inc.QemuLoaded()
        case Qemu.RUNS:
            yield from (inc.GuestRuns(), inc.QemuLoaded())
        case Qemu.GONE:
            yield from (inc.QemuExited(CAUSE), inc.QemuExited(CAUSE, by_guest=True), inc.Undone())
    is_taken = isinstance(world.destination, inc.Entering | inc.Filling)
    if isinstance(world.source, out.Lost) or (isinstance(world.source, out.Kept) and not is_taken):
        yield inc.AbandonRequested(CAUSE, source_has_ended=True)
    if world.token_given:
        yield inc.ResumeRequested()


@cache
def every_world() -> frozenset[World]:
    """Return all worlds that can be reached from the start."""
    return frozenset(worlds_from(START))


def worlds_from(start: World) -> set[World]:
    """Return all worlds that can be reached from one."""
    seen = {start}
    queue = [start]
    while queue:
        for world in successors(queue.pop()):
            if world not in seen:
                seen.add(world)
                queue.append(world)
    return seen


def test_no_reachable_world_has_the_guest_running_on_both_hosts():
    worlds = every_world()

    assert len(worlds) > 300
    assert not [w for w in worlds if w.source_qemu is Qemu.RUNS and w.destination_qemu in RUNNING]


def test_no_machine_ends_its_half_of_a_guest_that_is_half_on_each_side():
    for world in every_world():
        if world.source_qemu is not Qemu.HALF or world.destination_qemu not in {Qemu.HALF, Qemu.RUNS_HALF}:
            continue
        assert isinstance(world.source, out.Crossing | out.Following | out.Broken), world
        for event in _source_may_see(world):
            for after in _outgoing(world, event):
                assert after.source_qemu is Qemu.HALF, (world, event)
        has_arrived = isinstance(world.destination, inc.Arrived | inc.Entering | inc.Filling)
        for told in _destination_may_see(world):
            if told == inc.AbandonRequested(CAUSE) and not has_arrived:
                continue  # refused by `Migrations.abandon` while the guest may be coming by post-copy
            for after in _incoming(world, told):
                assert after.destination_qemu in {Qemu.HALF, Qemu.RUNS_HALF}, (world, told)


def test_a_guest_that_is_half_on_each_side_goes_on_to_the_destination_when_nothing_ends():
    halves = [w for w in every_world() if w.source_qemu is Qemu.HALF and w.destination_qemu in {Qemu.HALF, Qemu.RUNS_HALF}]

    assert len(halves) > 10
    for world in halves:
        assert any(isinstance(w.source, out.HandedOver) and w.destination_qemu is Qemu.RUNS for w in worlds_from(world)), world


def test_a_source_that_has_lost_a_guest_knows_whether_its_disks_may_be_newer_at_the_destination():
    took = inc.Entering | inc.Filling | inc.Ending | inc.Resuming | inc.Running | inc.Finished | inc.Lost
    lost = [world for world in every_world() if isinstance(world.source, out.Losing | out.Lost)]

    assert {world.source.newest_is_there for world in lost} == {True, False}  # type: ignore[union-attr]
    for world in lost:
        if isinstance(world.destination, took):
            assert world.source.newest_is_there, world  # type: ignore[union-attr]
        if not world.token_given:
            assert not world.source.newest_is_there, world  # type: ignore[union-attr]


def test_no_reachable_world_gives_the_guest_up_on_both_sides_while_a_whole_copy_exists():
    for world in every_world():
        if isinstance(world.source, out.Retired):
            assert isinstance(world.destination, inc.Running | inc.Finished | inc.Lost)
        if isinstance(world.source, out.Kept):
            assert world.destination_qemu not in RUNNING
